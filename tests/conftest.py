"""Shared settings of the suite: eight CPU devices, strict rank promotion, one compilation cache, seeded generators."""

import os
import tempfile
import types

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
CACHE = os.environ.get("SDECOR_TEST_CACHE", os.path.join(tempfile.gettempdir(), f"sdecor-jax-cache-{jax.__version__}"))
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
os.environ["XDG_CACHE_HOME"] = f"{CACHE}-user"  # commands that the tests start keep their programs there


def pytest_configure(config: pytest.Config) -> None:
    """Compile the quick suite with few optimisations, which take most of its time; the full suite has all."""
    if config.option.markexpr == "not full":
        quick = ["--xla_backend_optimization_level=1"]  # at 0 DeepLIFT of a CNN is wrong, or even NaN
        if jax.__version_info__ < (0, 11):  # later versions gain nothing, or reject a flag
            quick += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *quick]).strip()  # read at JAX's first use


@pytest.fixture
def key() -> jax.Array:
    """Return a typed random key."""
    return jax.random.key(0)


_SEEDED: dict[str, dict] = {}


def begin_anew(module: types.ModuleType) -> None:
    """Reset a module's random generator to its seed, so that tests draw the same numbers in any order."""
    for name in ("rng", "RNG"):
        generator = getattr(module, name, None)
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = _SEEDED.setdefault(module.__name__, generator.bit_generator.state)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Function) -> None:
    """Reset the generator before fixtures: a module's fixture is made for the first test that requests it."""
    begin_anew(item.module)


@pytest.fixture(autouse=True)
def draws_of_its_own(request: pytest.FixtureRequest) -> None:
    """Reset the generator again before the test itself."""
    begin_anew(request.module)
