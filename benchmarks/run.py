"""Run the benchmarks, keep their tables as JSON, and fill the places of docs/performance.md from these files.

    make bench                                              a few minutes on two cores
    make bench-full                                         hours; every benchmark
    python benchmarks/run.py [--full] [--only=step,input]   some of them
    python benchmarks/run.py --render                       docs/performance.md alone, from the kept files

A benchmark is a script here that prints Markdown tables. benchmarks/results/NAME.json has the tables of its last full
run, with the command, the versions and the hardware; a quick run writes NAME-quick.json, which is not in the docs. In
docs/performance.md, `<!-- table: NAME 0 -->` is the place of the first table of NAME; an empty line ends the table.
Other tables there are written by hand.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
import time
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from sdecor.core import files
from sdecor.training import compiled

ROOT = pathlib.Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results", ROOT / "docs/performance.md"


class Benchmark(NamedTuple):
    """A script, with its arguments for a quick and a full run; None leaves it out of the quick ones.

    `needs` names a package that is not in the requirements of the repository. Without it the script is skipped.
    `beside` names packages that are measured too where they are installed.
    """

    script: str
    quick: str | None
    full: str = ""
    needs: str | None = None
    beside: tuple[str, ...] = ()

    def versions(self) -> dict[str, str]:
        """Return the versions of all packages that are measured."""
        own = [name for name in (self.needs, *self.beside) if name and importlib.util.find_spec(name)]
        return compiled.versions() | {name: importlib.metadata.version(name) for name in own}


def _program(network: str, steps: str, *, folder: str = "runs/program", images: int | None = None) -> Benchmark:
    """Return the benchmark of a network's steps by the TPU compiler; each compiled step stays in the folder."""
    words = f"--folder={folder} --topology=v5e:2x4 --networks={network} --steps='{steps}'"
    return Benchmark("program.py", None, words + (f" --images={images}" if images else ""))


CAPTUM = ("torch", "captum")
_PROGRAM_STEPS = "ce;sgt;decor;decor, density;sdecor;sdecor, frozen;sdecor, eval;sdecor, density"
BENCHMARKS = {
    "step": Benchmark("step.py", "--models=cnn --rounds=5", "--models=cnn"),
    "step_default_allocator": Benchmark(
        "step.py", None, "--models=cnn --default_allocator --steps='ce;decor;sdecor (shared);sdecor (density)'"
    ),
    "step_resnet18": Benchmark(
        "step.py", None, "--models=resnet18 --batch_size=8 --rounds=5 --steps='ce;decor;sdecor (shared)'"
    ),
    "growth_batch": Benchmark("growth.py", None, "--axes=batch"),
    "growth_size": Benchmark("growth.py", None, "--axes=size"),
    "growth_width": Benchmark("growth.py", None, "--axes=width"),
    "growth_layers": Benchmark("growth.py", None, "--axes=layers"),
    "growth_devices": Benchmark("growth.py", "--axes=devices", "--axes=devices"),
    "replicas": Benchmark("replicas.py", None, "--replicas=1,4,16 --steps=2"),
    "input": Benchmark("input.py", "--rounds=1 --n=1024 --steps=8", "--rounds=3 --steps=8"),
    "input_photograph": Benchmark("input.py", None, "--photograph --rounds=6"),
    "startup": Benchmark("startup.py", "--methods=sdecor"),
    "loop": Benchmark("loop.py", "--taken=640 --network=", ""),
    "attribution": Benchmark(
        "attribution.py",
        "--networks=small --rounds=1 --methods=gradient,grad_cam,lrp",
        "--networks=small --rounds=3",
        beside=CAPTUM,
    ),
    "attribution_cams": Benchmark(
        "attribution.py",
        None,
        "--networks=small --rounds=10 --methods=grad_cam,grad_cam_plus_plus,layer_cam,hires_cam",
        beside=CAPTUM,
    ),
    "attribution_memory": Benchmark("attribution_memory.py", None),
    "attribution_vit": Benchmark(
        "attribution_memory.py",
        None,
        "--times --models=vit_ti --images=2 --methods='gradient;lrp;lrp:rule=epsilon;lrp:rule=vit;attention_rollout;"
        "attention_relevance;legrad;deeplift'",
    ),
    "metrics": Benchmark(
        "metrics.py",
        "--rounds=1 --metrics=gini,insertion,road",
        "--rounds=3 --quantus_images=2",
        beside=("torch", "quantus"),
    ),
    "export": Benchmark("export.py", "--images=512 --rounds=1", "--images=4096"),
    "export_gradient": Benchmark("export.py", None, "--images=16384 --methods=gradient"),
    "checkpoint": Benchmark("checkpoint.py", "--megabytes=100 --rounds=1", "--megabytes=100,400,1000 --rounds=3"),
    "selection": Benchmark("selection.py", None),
    "program_cnn": _program("cnn", _PROGRAM_STEPS),
    "program_resnet18": _program("resnet18", _PROGRAM_STEPS),
    "program_vit_s": _program("vit_s", "ce;sdecor;sdecor, masked remat"),
    "program_resnet50": _program("resnet50", _PROGRAM_STEPS, folder="runs/program128", images=128),
    "primitives": Benchmark("primitives.py", "--rounds=2", "--rounds=5"),
    "scaling": Benchmark("scaling.py", None),
    "peers": Benchmark("peers/compare.py", None, "--models=cnn --batch_size=128 --rounds=7", needs="torch"),
    "peers_resnet18": Benchmark(
        "peers/compare.py",
        None,
        "--models=resnet18 --batch_size=32 --rounds=3 --seconds=0.1 --without=compiled,NCHW",
        needs="torch",
    ),
}
_TABLE = re.compile(r"^\|.*\|\n\|[ :|-]+\|\n(?:\|.*\|\n?)*", re.MULTILINE)
_PLACE = re.compile(r"(<!-- table: (\w+) (\d+) -->\n)(?:\|.*\n)*")


def parse_tables(text: str) -> list[dict[str, Any]]:
    """Return the Markdown tables in a text: their columns and rows, as texts."""
    tables = []
    for found in _TABLE.finditer(text):
        lines = [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in found[0].strip().splitlines()]
        tables.append({"columns": lines[0], "rows": lines[2:]})
    return tables


def format_table(table: dict[str, Any]) -> str:
    """Return a table of `parse_tables` as Markdown."""
    lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def describe_hardware() -> dict[str, Any]:
    """Return the machine: its processor, its cores, and the devices that JAX finds in a process of its own."""
    ask = "import jax; print(len(jax.devices()), jax.devices()[0].device_kind, sep=' × ')"
    devices = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    return {"machine": platform.machine(), "cores": os.cpu_count(), "devices": devices}


def run(name: str, *, full: bool) -> None:
    """Run a benchmark, show its output, and keep its tables."""
    arguments = BENCHMARKS[name].full if full else BENCHMARKS[name].quick
    command, needs = f"benchmarks/{BENCHMARKS[name].script} {arguments}".strip(), BENCHMARKS[name].needs
    if needs and importlib.util.find_spec(needs) is None:
        folder = pathlib.Path(command.split()[0]).parent
        print(f"\nskipped: {command} needs {needs}: pip install -r {folder}/requirements.txt", flush=True)
        return
    print(f"\npython {command}", flush=True)
    start, lines = time.perf_counter(), []
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, *shlex.split(command)], **options) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        sys.exit(f"benchmarks/run.py: {command} ended with status {process.returncode}")
    tables = parse_tables("".join(lines))
    if not tables:
        sys.exit(f"benchmarks/run.py: {command} printed no table, so that nothing could be kept")
    RESULTS.mkdir(exist_ok=True)
    content = {
        "command": f"python {command}",
        "seconds": round(time.perf_counter() - start),
        "versions": BENCHMARKS[name].versions(),
        "hardware": describe_hardware(),
        "tables": tables,
    }
    files.write_json(RESULTS / f"{name}{'' if full else '-quick'}.json", content)


def render(text: str, results: dict[str, Any]) -> str:
    """Return a page with the tables of the results in the places marked for them."""

    def table(place: re.Match) -> str:
        name, index = place[2], int(place[3])
        if name not in results:
            return place[0]
        return place[1] + format_table(results[name]["tables"][index])

    return _PLACE.sub(table, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every benchmark, with its full arguments")
    parser.add_argument("--only", help=f"some of {', '.join(BENCHMARKS)}")
    parser.add_argument("--render", action="store_true", help="write docs/performance.md from the kept files")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(BENCHMARKS)
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        sys.exit(f"benchmarks/run.py: --only={unknown[0]} is no benchmark: name some of {', '.join(BENCHMARKS)}")
    if not options.render:
        for name in chosen:
            if options.full or BENCHMARKS[name].quick is not None:
                run(name, full=options.full)
    if options.render or options.full:
        results = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
        files.write_file(PAGE, render(PAGE.read_text(), results))


if __name__ == "__main__":
    main()
