"""The direction of imports that keeps the parts usable alone (docs/design.md)."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LEAVES = {"losses", "masking", "attribution", "metrics"}
# What any part may use.
SMALL = {
    *("rng", "checks", "gaussian", "chunks", "classes", "jaxpr", "sorting", "failure", "digest", "paths"),
    *("precision", "parallel"),
}
MAY_IMPORT = {
    "rng": set(),
    "checks": set(),
    "precision": set(),
    "gaussian": {"checks"},
    "chunks": {"checks", "jaxpr", "precision"},
    "jaxpr": set(),
    "sorting": set(),
    "failure": set(),
    "digest": set(),
    "classes": set(),
    "paths": set(),
    "cli": {"parallel", "failure"},
    "losses": SMALL,
    "masking": SMALL,
    "attribution": SMALL,
    "metrics": SMALL | {"attribution"},
    "statistics": SMALL,
    "models": SMALL,
    "optim": SMALL,
    "state": SMALL,
    "data": SMALL,
    "parallel": SMALL,
    "replicas": SMALL,
    "stacked": SMALL | {"state"},
    "checkpoint": SMALL | {"parallel", "state", "replicas"},
    "record": SMALL | {"checkpoint", "logbook", "parallel", "state", "replicas"},
    "inputs": SMALL | {"data", "parallel", "stacked"},
    "validation": SMALL | {"data", "interrupt", "parallel", "state", "steps"},
    "logbook": SMALL,
    "interrupt": SMALL,
    "workdir": SMALL,
    "objective": SMALL | {"losses", "masking", "models"},
    "steps": SMALL | {"losses", "masking", "attribution", "metrics", "models", "optim", "state", "objective"},
    "evaluation": SMALL | {"attribution", "metrics", "data", "parallel"},
    "export": SMALL | {"attribution", "data", "parallel", "evaluation", "workdir", "interrupt", "logbook", "report"},
    "sweep": SMALL | {"workdir", "interrupt", "logbook", "report", "metrics", "evaluation", "build", "replicas"},
    "summary": SMALL | {"metrics", "statistics", "evaluation"},
    "specification": SMALL | {"losses", "masking"},
    "runs": SMALL | {"build", "checkpoint", "workdir", "data"},
    "report": SMALL | {"metrics"},
    "run_plan": SMALL | {"runs", "evaluation", "data", "parallel", "workdir"},
    "run_report": SMALL
    | {"attribution", "data", "evaluation", "logbook", "report", "run_plan", "runs", "summary", "workdir"},
    "build": None,  # reads the config and may use everything
    "__init__": None,
}


def imports(path: pathlib.Path) -> set[str]:
    """Return the names of all modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts() -> list[pathlib.Path]:
    return sorted(ROOT.glob("sdecor/**/*.py"))


def part_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT / "sdecor").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", parts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is new: say in MAY_IMPORT what it may import"
    allowed = MAY_IMPORT[part]
    if allowed is None:
        return
    used = {name.split(".")[1] for name in imports(path) if name.startswith("sdecor.")}
    known = {name for name in used if name in MAY_IMPORT}
    assert known <= allowed | {part}, f"{path} imports {sorted(known - allowed - {part})}"


DEVICES = {"pmap", "shard_map", "Mesh", "NamedSharding", "device_put", "make_mesh", "multihost_utils"}


def device_names(path: pathlib.Path) -> set[str]:
    """Return what a file names of devices, as an attribute (`jax.pmap`) or in an import, under whatever alias."""
    attributes = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    imported = {name for dotted in imports(path) for name in dotted.split(".")}
    return DEVICES & (attributes | imported)


@pytest.mark.parametrize("path", parts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_devices_are_named_in_one_file(path):
    assert part_of(path) == "parallel" or not device_names(path)


@pytest.mark.parametrize(
    "line", ["jax.pmap(f)", "from jax import pmap as p", "import jax.experimental.shard_map", "x = sharding.Mesh"]
)
def test_every_way_to_name_devices_is_found(tmp_path, line):
    path = tmp_path / "part.py"
    path.write_text(f"import jax\n{line}\n")
    assert len(device_names(path)) == 1


def test_configs_import_the_config_library_alone():
    for path in ROOT.glob("configs/**/*.py"):
        modules = {name.split(".")[0] for name in imports(path)}
        assert modules <= {"ml_collections", "configs"}, path


def test_library_imports_without_data_packages():
    """Machines for benchmarks hold only jax, flax, optax, orbax and chex."""
    blocked = ["tensorflow_datasets", "grain", "ml_collections", "PIL", "sklearn", "tensorboardX", "tensorflow"]
    code = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        "import sdecor, sdecor.losses, sdecor.masking, sdecor.models, sdecor.attribution, sdecor.metrics\n"
        "import sdecor.training.steps, sdecor.training.state, sdecor.training.state, sdecor.core.parallel, sdecor.data.augment, sdecor.evaluation\n"
        "import sdecor.export\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_attribution_stands_alone():
    code = (
        "import sys\nfor name in ('flax', 'optax', 'orbax', 'chex', 'scipy'): sys.modules[name] = None\n"
        "import jax, sdecor\nfrom sdecor.attribution import METHODS, explain\n"
        "explain(lambda x: x.sum((0, 1)), jax.numpy.ones((2, 4, 4, 3)), 'predicted')\n"
        "assert {name.split('.')[1] for name in sys.modules if name.startswith('sdecor.')} <= "
        f"{SMALL | {'attribution'}}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_public_names_are_there():
    import sdecor

    assert all(getattr(sdecor, name) is not None for name in sdecor.__all__) and set(sdecor.__all__) <= set(dir(sdecor))
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        sdecor.explian  # noqa: B018
