"""The folder of the compilation cache, and what is kept there."""

import os
import subprocess
import sys
import time
import types
from unittest import mock

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from sdecor.core import compile_cache
from sdecor.training import compiled

VALUES = {
    "jax_compilation_cache_dir": None,
    "jax_enable_compilation_cache": True,
    "jax_compilation_cache_max_size": -1,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
}


def chosen(folder=None, **values):
    """Return JAX's settings after `use(folder)`, where they were `values` or JAX's own defaults."""
    config = types.SimpleNamespace(**VALUES | values)
    config.update = lambda name, value: setattr(config, name, value)
    with mock.patch.object(jax, "config", config):
        compile_cache.use(folder)
    return config


def test_the_folder_is_the_users_unless_another_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    default = tmp_path / "cache/sdecor/compilation" / compile_cache.processor()
    with mock.patch.object(compile_cache.importlib.util, "find_spec", return_value=None):  # no package filelock
        without = chosen()
    assert without.jax_compilation_cache_dir == f"{default}-without-bounds"
    assert without.jax_compilation_cache_max_size == -1
    pytest.importorskip("filelock")
    assert chosen().jax_compilation_cache_dir == str(default) and default.stat().st_mode & 0o777 == 0o700
    elsewhere = str(tmp_path / "elsewhere")
    assert chosen(elsewhere).jax_compilation_cache_dir == elsewhere and os.path.isdir(elsewhere)
    assert chosen("gs://bucket/cache").jax_compilation_cache_dir == "gs://bucket/cache"
    assert chosen("").jax_compilation_cache_dir is None
    assert chosen(elsewhere, jax_compilation_cache_dir="theirs").jax_compilation_cache_dir == "theirs"
    assert chosen(jax_enable_compilation_cache=False).jax_compilation_cache_dir is None
    with pytest.raises(ValueError, match="--compilation_cache = '/dev/null/cache' cannot be made"):
        chosen("/dev/null/cache")


def test_the_default_folder_follows_the_xdg_specification():
    home = os.path.expanduser("~")
    name = compile_cache.processor()
    assert compile_cache.default_folder({}) == f"{home}/.cache/sdecor/compilation/{name}"
    assert compile_cache.default_folder({"XDG_CACHE_HOME": "relative"}) == f"{home}/.cache/sdecor/compilation/{name}"
    assert compile_cache.default_folder({"XDG_CACHE_HOME": "/cache"}) == f"/cache/sdecor/compilation/{name}"


def test_a_default_folder_that_cannot_be_written_is_reported_once(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with mock.patch.object(compile_cache.logging, "warning") as warning:
        assert chosen().jax_compilation_cache_dir is None
    warning.assert_called_once()


def test_values_that_the_user_has_set_stay(tmp_path, monkeypatch):
    folder = str(tmp_path)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    assert chosen(folder).jax_persistent_cache_min_compile_time_secs == compile_cache.MIN_SECONDS
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1.0")
    assert chosen(folder).jax_persistent_cache_min_compile_time_secs == 1.0
    assert chosen(folder, jax_compilation_cache_max_size=5).jax_compilation_cache_max_size == 5


def test_processors_of_other_instructions_have_folders_of_their_own(tmp_path):
    def named(text):
        (tmp_path / "cpuinfo").write_text(text)
        return compile_cache.processor(str(tmp_path / "cpuinfo"))

    first = named("processor: 0\nmodel name: A\nflags: sse avx\n\nprocessor: 1\nmodel name: A\nflags: sse avx\n")
    assert first == named("processor: 0\nmodel name: A\nflags: avx sse\n")
    assert first != named("processor: 0\nmodel name: A\nflags: sse avx avx512f\n")
    assert first != named("processor: 0\nmodel name: B\nflags: sse avx\n")
    assert compile_cache.processor(str(tmp_path / "missing"))


def test_an_entry_of_a_killed_process_is_deleted(tmp_path):
    for name in ("whole-cache", "whole-atime", "cut-cache", "new-cache"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "cut-cache", (time.time() - 3600,) * 2)
    compile_cache.drop_abandoned(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["new-cache", "whole-atime", "whole-cache"]


def test_a_second_start_reads_the_program_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    before = {name: getattr(jax.config, name) for name in VALUES}
    lowered = lambda: jax.jit(lambda x: x @ x + len(str(tmp_path))).lower(np.ones((3, 3), np.float32))  # noqa: E731
    try:
        for name, value in VALUES.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        compile_cache.use(str(tmp_path))
        first = compiled.compile_timed(lowered())
        assert not first.cached and list(tmp_path.glob("*-cache"))
        jax.clear_caches()
        second = compiled.compile_timed(lowered())
        assert second.cached and "read from the compilation cache" in compiled.describe_step(second)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


FILL = """
import sys, jax, numpy as np
from sdecor.core import compile_cache
compile_cache.use(sys.argv[1])
for n in range(8):
    jax.jit(lambda x, n=n: x + n)(np.float32(1))
"""


@pytest.mark.full
def test_several_processes_write_one_bounded_cache(tmp_path):
    """Eight small programs of three processes at once: every entry is whole, and the bound holds with filelock."""
    pytest.importorskip("filelock")
    bound = 20_000
    env = os.environ | {"JAX_COMPILATION_CACHE_MAX_SIZE": str(bound), "JAX_RAISE_PERSISTENT_CACHE_ERRORS": "true"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    jobs = [subprocess.Popen([sys.executable, "-c", FILL, str(tmp_path)], env=env) for _ in range(3)]
    assert [job.wait(timeout=300) for job in jobs] == [0, 0, 0]
    entries = list(tmp_path.glob("*-cache"))
    assert entries and sum(path.stat().st_size for path in entries) <= bound
