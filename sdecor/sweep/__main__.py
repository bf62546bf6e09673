"""Run a sweep, see how far it is, and report what it found.

    python -m sdecor.sweep --config=configs/sweeps/ablation.py --workdir=DIR [--jobs=2] [--only=ce,sgt] [--seeds=0:3]
    python -m sdecor.sweep --config=… --workdir=DIR --status | --list | --slurm timeout_min=240 gpus_per_node=1 …
    python -m sdecor.sweep --report DIR

The same command continues where it was stopped. What is finished is left alone; what failed is tried again.
"""

import argparse
import logging
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

from sdecor.core import files
from sdecor.core.checks import check_count
from sdecor.core.commands import INTERRUPTED, as_one_line
from sdecor.sweep import check, commands, job, local, plan, slurm, trial_folder


def main(words: Sequence[str] | None = None) -> None:
    """Do what the command line asks for; an error in what was asked for is one clear message and exit status 1."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    flags = parser().parse_args(words)
    try:
        with as_one_line("sdecor.sweep", (ValueError, OSError)):
            code = run(flags)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(code)


def run(flags: argparse.Namespace) -> int:
    """Return the exit status: 0 where nothing is left, 130 when stopped, 1 where some runs failed."""
    if flags.report is not None:
        from sdecor.sweep import report

        print(report.write(local_folder("--report", flags.report)))
        return 0
    if flags.workdir is None:
        raise ValueError("--workdir is missing: name the folder of the sweep, or give --report DIR")
    folder = local_folder("--workdir", flags.workdir)
    jobs = flags.jobs if flags.jobs is not None else len(flags.gpus or "1".split())
    check_count("--jobs", jobs)
    if flags.gpus and jobs > len(flags.gpus):
        raise ValueError(f"--jobs = {jobs} is more than the devices in --gpus: each run has one of its own")
    check_count("--replicas", flags.replicas)
    if flags.replicas > 1 and flags.slurm is not None:
        raise ValueError("--replicas is for this machine: a task of --slurm is one run")
    sweep = plan.load(flags.config, flags.set) if flags.config else plan.read(folder)
    runs = sweep.runs(flags.only, plan.parse_seeds(flags.seeds) if flags.seeds else ())
    if flags.status:
        print(local.describe(runs, folder, jobs))
        return 0
    if flags.list:
        for each in runs:
            for stage in commands.STAGES:
                print(commands.shown(commands.command(each, stage, folder)))
        return 0
    if not flags.config:
        raise ValueError("--config is missing: name a sweep file, for example configs/sweeps/ablation.py")
    return start(sweep, runs, folder, jobs, flags)


def start(
    sweep: plan.Sweep, runs: Sequence[plan.Run], folder: pathlib.Path, jobs: int, flags: argparse.Namespace
) -> int:
    """Check the sweep, then run it here or submit it; return the exit status."""
    away = flags.slurm is not None
    files.check_checkpoints("--workdir", folder)
    # The machine that submits need not have the accelerators.
    configs = check.check(sweep, runs, folder, os.environ | ({"JAX_PLATFORMS": "cpu"} if away else {}))
    plan.write(folder, sweep)
    if away:
        options = slurm.parse(flags.slurm)
        submitted = slurm.submit(runs, folder, options, flags.jobs)
        names = ", ".join(each.job_id for each in submitted) or "nothing is left to do"
        print(f"submitted {len(submitted)} tasks: {names}")
        if options.get("cluster") in ("local", "debug"):
            for each in submitted:
                each.wait()
            print(local.describe(runs, folder))
        return 0
    places = [{"CUDA_VISIBLE_DEVICES": name} for name in flags.gpus or ()]
    grouped = job.together(runs, folder, configs, flags.replicas)
    went_through = local.run_all(runs, folder, jobs=jobs, environments=places, grouped=grouped)
    print(local.describe(runs, folder, jobs))
    if not went_through:
        print("stopped: run the same command to continue")
        return INTERRUPTED
    finished = all(trial_folder.state(folder / each.key, each) == trial_folder.FINISHED for each in runs)
    if finished:
        print("Next:", shlex.join(["python", "-m", "sdecor.sweep", "--report", str(folder)]))
    return 0 if finished else 1


def local_folder(flag: str, path: str) -> pathlib.Path:
    """Return the path of a local folder.

    Raises:
      ValueError: for a remote one, where runs cannot be claimed, or a path that cannot be a folder's.
    """
    if "://" in path:
        raise ValueError(f"{flag} = {path!r} is remote: a sweep's folder is local, or shared by the nodes of a cluster")
    files.check_output(flag, path)
    return pathlib.Path(path).absolute()


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    known = argparse.ArgumentParser(
        prog="python -m sdecor.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    known.add_argument("--config", help="sweep file, FILE or FILE:ARGUMENT of its get_config")
    known.add_argument("--workdir", help="folder of the sweep: a run is in <cell>/seed<k> of it")
    known.add_argument("--report", metavar="DIR", help="write tables and figures of the sweep in DIR to DIR/report")
    known.add_argument("--status", action="store_true", help="say what is finished, running, failed and left")
    known.add_argument("--list", action="store_true", help="print the command lines and run nothing")
    known.add_argument("--only", type=_names, default=(), metavar="CELL,…", help="these cells alone")
    known.add_argument("--seeds", metavar="0:3", help="these seeds alone")
    known.add_argument("--jobs", type=int, help="runs at a time; default 1")
    known.add_argument(
        "--replicas", type=int, default=1, metavar="R", help="train up to R runs that differ in numbers alone at once"
    )
    known.add_argument("--gpus", type=_names, metavar="0,1,…", help="give each of the runs at a time one of these GPUs")
    known.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change evaluate.FLAG or config.FIELD"
    )
    known.add_argument("--slurm", nargs="*", metavar="NAME=VALUE", help="submit an array; options of submitit")
    return known


def _names(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


if __name__ == "__main__":
    main()
