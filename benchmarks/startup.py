"""Measure the start: from the command to the first training step, and to the first number of an evaluation.

    python benchmarks/startup.py [--roots=.,../before] [--methods=ce,sdecor] [--rounds=1]

Each start is a process of its own, on the configs of `make demo`. "cold" has an empty compilation cache, "warm" that of
the cold start; the data set is prepared. For every root, a checkout of this repository, the starts are made in turn. A
start ends when the first step, or the first batch of an evaluation, is on the host. All columns but the last are in
seconds; "CPU" is the time of all threads, which a busy machine changes least.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace",
    "/jax/core/compile/backend_compile_duration": "compile",
}
COLUMNS = ("imports", "data", "trace", "compile", "rest", "total", "CPU", "programs")


def child(script: str, began: float) -> None:
    """Run a script of the repository in the working folder up to its first number; print the seconds as JSON."""
    spent = dict.fromkeys(COLUMNS, 0.0)
    sys.path.insert(0, os.getcwd())
    import jax

    def listen(event: str, seconds: float, **_: object) -> None:
        if event in EVENTS:
            spent[EVENTS[event]] += seconds
            spent["programs"] += EVENTS[event] == "compile"

    jax.monitoring.register_event_duration_secs_listener(listen)
    from sdecor.core import launch, watchdog
    from sdecor.training import build, profiling, run

    def timed(place: object, name: str) -> None:
        function = getattr(place, name)

        def call(*arguments: object, **options: object) -> object:
            start = time.time()
            try:
                return function(*arguments, **options)
            finally:
                spent["data"] += time.time() - start

        setattr(place, name, call)

    def finish() -> None:
        spent["total"], spent["CPU"] = time.time() - began, time.process_time()
        spent["rest"] = spent["total"] - sum(spent[name] for name in ("imports", "data", "trace", "compile"))
        print(json.dumps(spent), flush=True)
        os._exit(0)

    start_program, take, beat = launch.run, profiling.Profiler.take, watchdog.beat

    def started(*arguments: object, **options: object) -> None:
        spent["imports"] = time.time() - began
        start_program(*arguments, **options)

    def first_step(*arguments: object) -> None:
        jax.block_until_ready(take(*arguments))
        finish()

    def first_number(what: str, *arguments: object, **options: object) -> None:
        if ": predictions" in what:
            finish()
        beat(what, *arguments, **options)

    launch.run, profiling.Profiler.take = started, first_step
    if script == "evaluate.py":
        watchdog.beat = first_number
    for place, name in ((build, "create_data"), (run, "create_loaders"), (run, "validation_source")):
        timed(place, name)
    import runpy

    runpy.run_path(script, run_name="__main__")


def start(root: str, cache: str, *command: str) -> dict[str, float]:
    """Return the seconds of a start in a checkout."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    line = [sys.executable, str(pathlib.Path(__file__).resolve()), "--child", str(time.time()), *command]
    done = subprocess.run(line, cwd=root, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} in {root} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_import(root: str, module: str, beside: str) -> float:
    """Return the seconds that the import of a module takes after that of another, best of 3."""
    program = f"import time, {beside}; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    run = lambda: subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)  # noqa: E731
    return min(float(run().stdout) for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--roots", default=str(ROOT), help="checkouts to compare")
    parser.add_argument("--methods", default="ce,sdecor")
    parser.add_argument("--rounds", type=int, default=1, help="the fastest of so many starts counts")
    parser.add_argument("--evaluate", help="folder of a trained run to evaluate; default: one of a single step")
    options = parser.parse_args()
    roots = options.roots.split(",")
    print(f"| start | checkout | {' | '.join(COLUMNS)} |\n| {' | '.join(['---'] * (len(COLUMNS) + 2))} |")
    with tempfile.TemporaryDirectory() as scratch:
        trained = options.evaluate or train_briefly(f"{scratch}/trained")
        commands = [
            (f"train.py, {method}", ["train.py", f"--config=configs/demo.py:method={method}"])
            for method in options.methods.split(",")
        ]
        commands.append(("evaluate.py", ["evaluate.py", f"--workdir={trained}", f"--output={scratch}/out", "--force"]))
        for title, command in commands:
            found: dict[tuple[str, str], list[dict[str, float]]] = {}
            for _ in range(options.rounds):
                for root in roots:
                    cache = tempfile.mkdtemp(dir=scratch)
                    for kind in ("cold", "warm"):
                        own = [f"--workdir={tempfile.mkdtemp(dir=scratch)}"] if "train" in title else []
                        found.setdefault((kind, root), []).append(start(root, cache, *command, *own))
            for (kind, root), starts in found.items():
                best = min(starts, key=lambda spent: spent["total"])
                cells = [f"{best[name]:.0f}" if name == "programs" else f"{best[name]:.1f}" for name in COLUMNS]
                name = pathlib.Path(root).resolve().name
                print(f"| {title}, {kind} | {name} | {' | '.join(cells)} |", flush=True)
    print("\n| import, seconds beyond jax | checkout | seconds |\n| --- | --- | --- |")
    for root in roots:
        for module in ("sdecor", "sdecor.losses", "sdecor.attribution"):
            print(f"| {module} | {pathlib.Path(root).resolve().name} | {measure_import(root, module, 'jax'):.2f} |")


def train_briefly(folder: str) -> str:
    """Train the demo's sdecor config for a single epoch of few examples; return its folder."""
    command = [sys.executable, "train.py", "--config=configs/demo.py:method=sdecor", f"--workdir={folder}"]
    command += ["--config.train.epochs=1.0", "--config.train.batch_size=8", "--config.data.limit=64"]
    command += ["--config.log.progress=False"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        began, script = float(sys.argv[2]), sys.argv[3]
        sys.argv = sys.argv[3:]
        child(script, began)
    else:
        main()
