"""Eight CPU devices, strict rank promotion and one compilation cache for the whole suite."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
CACHE = os.environ.get("SDECOR_TEST_CACHE", os.path.join(tempfile.gettempdir(), f"sdecor-jax-cache-{jax.__version__}"))
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture
def key() -> jax.Array:
    """A typed key that every test may split as it likes."""
    return jax.random.key(0)
