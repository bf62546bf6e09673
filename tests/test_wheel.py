"""Tests of the installed package: it has the library alone, works far from the clone, and says what needs one."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "train.py", "evaluate.py")
FOLDERS = ("sdecor", "benchmarks", "configs", "docs", "examples", "studies", "tests")
pytestmark = pytest.mark.full

LIBRARY = """
import importlib, pathlib, pkgutil, sys
import jax
import jax.numpy as jnp
import numpy as np
import sdecor
assert pathlib.Path(sdecor.__file__).parent.parent == pathlib.Path(sys.argv[1]), sdecor.__file__
for module in pkgutil.walk_packages(sdecor.__path__, "sdecor."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
weights = jnp.linspace(-1, 1, 4 * 4 * 3 * 2).reshape(-1, 2)
images = jnp.linspace(0, 1, 3 * 4 * 4 * 3).reshape(3, 4, 4, 3)
maps = sdecor.explain(lambda image: image.reshape(-1) @ weights, images, "predicted", method="gradient")
assert maps.shape == images.shape
ginis = np.asarray(sdecor.metrics.gini(jnp.abs(maps).sum(-1)))
assert ginis.shape == (3,) and np.isfinite(ginis).all()
apply = lambda params, x: (x.reshape(len(x), -1) @ params, x.reshape(len(x), -1))
loss, terms = sdecor.saliency_decor(apply, weights, images, jnp.array([0, 1, 0]), key=jax.random.key(0))
assert np.isfinite(loss) and terms
assert callable(sdecor.export.export) and callable(sdecor.export.open)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    """Return a folder with the installed package, built from a copy so that the clone stays clean."""
    if _version("setuptools") < (77, 0, 3) or not _version("pip"):
        pytest.skip("needs the build backend of pyproject.toml: pip install -r requirements-test.txt")
    folder = tmp_path_factory.mktemp("wheel")
    source, target = folder / "source", folder / "site"
    source.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "-q", "wheel", "--no-index", "--no-deps", "--no-build-isolation"]
    run([*build, f"--wheel-dir={folder}", str(source)], folder)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def _version(package: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in importlib.metadata.version(package).split(".") if part.isdigit())
    except importlib.metadata.PackageNotFoundError:
        return ()


def run(command: list[str], folder: pathlib.Path, **env: str) -> str:
    process = start(command, folder, **env)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def start(command: list[str], folder: pathlib.Path, **env: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=inherited | env, capture_output=True, text=True, timeout=600)


def test_the_wheel_holds_the_library_alone(site):
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"sdecor"}
    there = {path.relative_to(site) for path in (site / "sdecor").rglob("*") if path.is_file()}
    sources = [path for path in (ROOT / "sdecor").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert there == {path.relative_to(ROOT) for path in sources}
    assert any("assets" in path.parts for path in there)


def test_the_library_works_from_the_wheel_alone(site, tmp_path):
    run([sys.executable, "-c", LIBRARY, str(site)], tmp_path, PYTHONPATH=str(site), JAX_PLATFORMS="cpu")


@pytest.mark.parametrize("module", ["sdecor.export", "sdecor.sweep"])
def test_command_lines_print_their_help(site, tmp_path, module):
    assert f"python -m {module}" in run([sys.executable, "-m", module, "--help"], tmp_path, PYTHONPATH=str(site))


@pytest.mark.parametrize("arguments", [[], ["--config=sweep.py", "--workdir=runs"], ["--workdir=runs", "--list"]])
def test_a_sweep_names_the_clone_that_it_needs(site, tmp_path, arguments):
    process = start([sys.executable, "-m", "sdecor.sweep", *arguments], tmp_path, PYTHONPATH=str(site))
    (line,) = process.stderr.splitlines()
    assert process.returncode == 1 and "train.py" in line and "Clone the repository" in line


def test_a_stored_sweep_is_described_without_a_clone(site, tmp_path):
    import sweeps

    from sdecor.sweep import plan

    sweeps.finished(tmp_path, plan.make(sweeps.content(seeds=1)), {"ce": {0: {"accuracy": 0.5}}})
    command = [sys.executable, "-m", "sdecor.sweep"]
    status = run([*command, "--status", f"--workdir={tmp_path}"], tmp_path, PYTHONPATH=str(site))
    assert "1 finished" in status
    report = run([*command, "--report", str(tmp_path)], tmp_path, PYTHONPATH=str(site), MPLBACKEND="Agg")
    assert "1 of 2 trials are finished" in report and (tmp_path / "report" / "report.md").is_file()
