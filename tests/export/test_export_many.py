"""Tests that an export's memory does not depend on the number of images."""

import os
import pathlib
import sys

import jax
import pytest
import tiny_runs

from sdecor import export

GROWTH = 12  # MB: a few bytes per example, for labels and kept by the allocator


def peak(path: pathlib.Path, count: int, kind: str) -> tuple[float, float]:
    """Return the peak memory in MB and the images exported per second, measured in a process of its own."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(tiny_runs.ROOT)}
    env |= {"JAX_COMPILATION_CACHE_DIR": f"{jax.config.jax_compilation_cache_dir}-export"}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    program = [sys.executable, str(tiny_runs.ROOT / "tests/helpers/export_many.py"), str(path), str(count), kind]
    process = tiny_runs.start(program, env)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    words = output.split()
    return float(words[words.index("peak_mb") + 1]), float(words[words.index("rate") + 1])


@pytest.mark.full
@pytest.mark.parametrize("kind", ["source", "batches"])
def test_memory_stays_constant(tmp_path, kind):
    peak(tmp_path / "compiles", 1024, kind)
    (few, _), (many, rate) = (peak(tmp_path / f"{count}", count, kind) for count in (10_000, 100_000))
    print(f"{kind}: {few:.0f} MB for 10,000 images, {many:.0f} MB for 100,000, {rate:.0f} images/s")
    assert many < few + GROWTH
    held = export.open(tmp_path / "100000")
    assert held.complete and len(held) == 100_000 and not held.check()
    assert (held.label[[0, 99_999]] == [0, 9]).all()
    assert held.attribution("gradient", 99_999).tobytes() == held.attribution("gradient", 99_999 % 640).tobytes()
