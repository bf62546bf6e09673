"""Tests of the directions of imports, which keep the parts usable alone (docs/design.md)."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# One row per concern: the concerns that it may import.
MAY_IMPORT = {
    "core": set(),
    "losses": {"core"},
    "masking": {"core"},
    "models": {"core"},
    "data": {"core"},
    "rules": {"core"},
    "attribution": {"core", "rules"},
    "metrics": {"core", "attribution"},
    "training": {"core", "losses", "masking", "models", "data", "attribution"},
    "evaluation": {"core", "data", "attribution", "metrics", "training"},
    "report": {"core", "data", "attribution", "metrics", "training", "evaluation"},
    "export": {"core", "data", "attribution", "evaluation", "report"},
    "sweep": {"core", "metrics", "training", "evaluation", "report"},
    "__init__": set(),
}
# Exceptions: the only file of a concern that may import another concern.
ONLY_FROM = {
    ("training", "attribution"): "training/build/checks.py",  # the names of methods that a config may hold
    ("evaluation", "training"): "evaluation/runs.py",
    ("report", "training"): "report/run.py",
    ("report", "evaluation"): "report/run.py",
    ("export", "report"): "export/overlays.py",
}
# Files that stay usable, or readable, alone: all that each imports of the package.
ALONE = {
    "training/specification.py": {"core", "losses", "masking"},
    "training/terms.py": {"core", "losses"},
    "training/objective.py": {"core", "losses", "masking", "models", "training.terms"},
    "training/steps.py": {"core", "losses", "masking", "training.objective", "training.state"},
    "training/state.py": {"core"},
    "core/arrays.py": {"core.checks"},
    "core/chunks.py": {"core.arrays", "core.checks", "core.jaxpr"},
    "core/parallel.py": {"core.checks"},
    "core/launch.py": {"core.commands", "core.compile_cache", "core.interrupt", "core.processes", "core.watchdog"},
    "core/interrupt.py": {"core.commands"},
    "core/watchdog.py": {"core.commands"},
    "training/health.py": set(),
    "training/clock.py": set(),
    "training/profiling.py": {"core"},
    "training/wandb_rows.py": {"core"},
    **{
        f"core/{leaf}.py": set()
        for leaf in ("checks", "children", "classes", "commands", "files", "jaxpr", "native", "rng")
    },
}
# And the programs and sweep.
READS_CONFIGS = {"training/run.py", "training/preview.py", "evaluation/runs.py"}
BUILDS = "training/build/"  # a folder whose files all do


def imports(path: pathlib.Path) -> set[str]:
    """Return the names of all modules that a file imports, inside functions too."""
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


@pytest.mark.parametrize("concern", MAY_IMPORT)
def test_imports_go_down_only(concern):
    for path in parts():
        if part_of(path) != concern:
            continue
        used = {name.split(".")[1] for name in imports(path) if name.startswith("sdecor.")} & set(MAY_IMPORT)
        assert used <= MAY_IMPORT[concern] | {concern}, f"{path}: {sorted(used - MAY_IMPORT[concern] - {concern})}"
        for other in used & {above for below, above in ONLY_FROM if below == concern}:
            assert str(path.relative_to(ROOT / "sdecor")) == ONLY_FROM[concern, other], f"{path} imports {other}"


@pytest.mark.parametrize("name", ALONE)
def test_a_file_stands_alone(name):
    used = {imported.removeprefix("sdecor.") for imported in imports(ROOT / "sdecor" / name) if imported != "sdecor"}
    own = {imported for imported in used if imported.split(".")[0] in MAY_IMPORT}
    allowed = ALONE[name]
    beyond = {x for x in own if not any(x == part or x.startswith(f"{part}.") for part in allowed)}
    # `from sdecor.core import files` also gives the folder itself.
    assert beyond <= {part.split(".")[0] for part in allowed}, name


def test_every_concern_has_a_row_and_nothing_else_is_there():
    assert {part_of(path) for path in parts()} == set(MAY_IMPORT)
    assert {path.name for path in (ROOT / "sdecor").glob("*.py")} == {"__init__.py", "masking.py"}


def config_fields(path: pathlib.Path) -> set[str]:
    """Return the fields that a file reads of a `config` or `run.config`, and the config library if imported."""
    fields = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(ast.Name("config"), field):
                fields.add(field)
            case ast.Attribute(ast.Attribute(ast.Name(holder), "config"), field) if holder != "jax":
                fields.add(field)
    return (fields - set(dir(dict))) | ({"ml_collections"} & imports(path))


def test_configs_are_read_where_the_design_says():
    reading = {str(path.relative_to(ROOT / "sdecor")) for path in parts() if config_fields(path)}
    assert {name for name in reading if not name.startswith(("sweep/", BUILDS))} == READS_CONFIGS


DEVICES = {"pmap", "shard_map", "Mesh", "NamedSharding", "device_put", "make_mesh", "multihost_utils"}


def device_names(path: pathlib.Path) -> set[str]:
    """Return the names of devices that a file uses, as an attribute (`jax.pmap`) or in an import with any alias."""
    attributes = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    imported = {name for dotted in imports(path) for name in dotted.split(".")}
    return DEVICES & (attributes | imported)


def test_devices_are_named_in_one_file():
    naming = {str(path.relative_to(ROOT / "sdecor")) for path in parts() if device_names(path)}
    assert naming == {"core/parallel.py"}


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
    """Machines for benchmarks have only jax, flax, optax, orbax and chex."""
    blocked = ["tensorflow_datasets", "grain", "ml_collections", "PIL", "sklearn", "tensorboardX", "tensorflow"]
    code = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        "import sdecor, sdecor.losses, sdecor.masking, sdecor.models, sdecor.attribution, sdecor.metrics\n"
        "import sdecor.training.steps, sdecor.training.state, sdecor.core.parallel, sdecor.data.augment\n"
        "import sdecor.evaluation, sdecor.report\n"
        "import sdecor.export\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_package_imports_little_beyond_jax():
    """Packages that take long to import are imported where they are used."""
    heavy = ["flax", "optax", "orbax", "chex", "scipy", "tensorstore", "grain", "matplotlib", "sklearn", "tensorboardX"]
    code = f"import sys, sdecor, sdecor.core\nassert not set({heavy}) & set(sys.modules), sorted(sys.modules)\n"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    for program in ("train", "evaluate"):
        heavy = ["matplotlib", "sklearn", "tensorflow_datasets", "PIL", "grain", "tensorboardX"]
        code = f"import sys, {program}\nassert not set({heavy}) & set(sys.modules), sorted(sys.modules)\n"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_sweep_starts_without_jax():
    """Its status is asked often, and its training runs are processes of their own."""
    code = "import sys\nsys.modules['jax'] = None\nimport sdecor.sweep.__main__\n"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_attribution_stands_alone():
    code = (
        "import sys\nfor name in ('flax', 'optax', 'orbax', 'chex', 'scipy'): sys.modules[name] = None\n"
        "import jax, sdecor\nfrom sdecor.attribution import METHODS, explain\n"
        "explain(lambda x: x.sum((0, 1)), jax.numpy.ones((2, 4, 4, 3)), 'predicted')\n"
        "assert {name.split('.')[1] for name in sys.modules if name.startswith('sdecor.')} <= "
        "{'attribution', 'rules', 'core'}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_public_names_are_there():
    import sdecor

    assert all(getattr(sdecor, name) is not None for name in sdecor.__all__) and set(sdecor.__all__) <= set(dir(sdecor))
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        sdecor.explian  # noqa: B018
