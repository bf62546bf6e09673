"""Tests of the benchmarks: tables are kept and rendered as they were printed, and no script or metric is left out."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PRINTED = """
cnn, 128 images of 32×32

| step | ms | × ce (time) |
| --- | --- | --- |
| ce | 32.6 | 1.00 |
| sdecor (shared) | 1,085.5 | **2.62** |

and one more

| a |
| --- |
| – |
"""
TABLES = [
    {
        "columns": ["step", "ms", "× ce (time)"],
        "rows": [["ce", "32.6", "1.00"], ["sdecor (shared)", "1,085.5", "**2.62**"]],
    },
    {"columns": ["a"], "rows": [["–"]]},
]


@pytest.fixture(scope="module")
def run():
    specification = importlib.util.spec_from_file_location("benchmarks_run", ROOT / "benchmarks/run.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_tables_are_parsed_as_printed(run):
    assert run.parse_tables(PRINTED) == TABLES
    assert all(run.format_table(table) in PRINTED for table in TABLES)


def test_a_page_gets_the_tables_of_its_places_and_keeps_the_rest(run):
    page = "# Costs\n\n<!-- table: step 1 -->\n| old |\n| --- |\n\ntext\n\n<!-- table: input 0 -->\n| kept |\n\nend\n"
    rendered = run.render(page, {"step": {"tables": TABLES}})
    assert rendered == page.replace("| old |\n| --- |\n", "| a |\n| --- |\n| – |\n")
    assert run.render(rendered, {"step": {"tables": TABLES}}) == rendered


def test_a_run_keeps_tables_command_versions_and_hardware(run, tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/small.py").write_text(f"import sys; print({PRINTED!r}, sys.argv[1:])")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(run.BENCHMARKS, "small", run.Benchmark("small.py", "--rounds=1", ""))
    run.run("small", full=False)
    kept = json.loads((tmp_path / "results/small-quick.json").read_text())
    assert kept["tables"] == TABLES and kept["command"] == "python benchmarks/small.py --rounds=1"
    assert kept["versions"]["jax"] and kept["hardware"]["cores"] and "cpu" in kept["hardware"]["devices"]


@pytest.mark.parametrize(
    "script, told",
    [("raise SystemExit(3)", "small.py ended with status 3"), ("print('|')", "small.py printed no table")],
)
def test_a_benchmark_that_fails_or_prints_no_table_ends_the_run(run, tmp_path, monkeypatch, script, told):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/small.py").write_text(script)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setitem(run.BENCHMARKS, "small", run.Benchmark("small.py", "", ""))
    with pytest.raises(SystemExit, match=told):
        run.run("small", full=True)


def test_every_script_is_a_benchmark(run):
    folder = ROOT / "benchmarks"
    paths = [path for path in folder.rglob("*.py") if "references" not in path.parts]
    scripts = {str(path.relative_to(folder)) for path in paths if '__name__ == "__main__"' in path.read_text()}
    assert scripts - {"run.py"} == {each.script for each in run.BENCHMARKS.values()}


def test_a_script_without_its_package_is_skipped_and_says_what_to_install(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setitem(run.BENCHMARKS, "other", run.Benchmark("other/none.py", "", "", needs="no_such_package"))
    run.run("other", full=False)
    assert "needs no_such_package: pip install -r benchmarks/other/requirements.txt" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_every_needed_package_is_in_the_requirements_beside_the_script(run):
    for benchmark in run.BENCHMARKS.values():
        if benchmark.needs:
            requirements = (ROOT / "benchmarks" / benchmark.script).with_name("requirements.txt")
            assert re.search(rf"^{benchmark.needs}\b", requirements.read_text(), re.MULTILINE), benchmark


def test_an_unknown_name_is_refused(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "--only=steps"])
    with pytest.raises(SystemExit, match="--only=steps is no benchmark"):
        run.main()


BIND = """
import inspect, metrics

known = metrics.METRICS | metrics.DATASET_METRICS
of_maps = {name for name, each in known.items() if each.needs not in ("model", "mosaic")}
assert of_maps - set(metrics.WORK) <= {name for name in of_maps if known[name].derived_from}, of_maps
fn = metrics.jax_network(metrics.NETWORK)
batch, with_params = metrics.make_batch(fn, 2), (fn, {}, {})
for name, work in metrics.WORK.items():
    given = metrics.arguments(name, fn, batch, with_params)
    signature = inspect.signature(known[name].function)
    signature.bind(*given, **work.options, **({"key": 0} if "key" in signature.parameters else {}))
"""


def test_every_metric_has_a_row_and_gets_its_arguments():
    """In a process of its own: the tests have modules with the names of those of the benchmarks."""
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'benchmarks'}{os.pathsep}{ROOT}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", BIND], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
