"""Run a sweep, show its progress, and report its results.

    python -m sdecor.sweep --config=configs/sweeps/ablation.py --workdir=DIR [--jobs=2] [--only=ce,sgt] [--seeds=0:3]
    python -m sdecor.sweep --config=… --workdir=DIR --status | --list | --slurm timeout_min=240 gpus_per_node=1 …
    python -m sdecor.sweep --report DIR

The same command continues a sweep that was stopped. Finished trials are left alone; failed ones are tried again.
A sweep starts train.py and evaluate.py: it needs a clone of the repository. --report and --status do not.
"""

import argparse
import logging
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

from sdecor.core import files, interrupt
from sdecor.core.checks import check_count
from sdecor.core.commands import INTERRUPTED, as_one_line
from sdecor.sweep import check, commands, job, local, plan, slurm, trial_folder


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line; a wrong request ends with one clear message and exit status 1."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    flags = parser().parse_args(words)
    try:
        with as_one_line("sdecor.sweep", (ValueError, OSError)):
            code = run(flags)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(code)


def run(flags: argparse.Namespace) -> int:
    """Return the exit status: 0 where no trial is left, 130 when stopped, 1 where some trials failed."""
    if flags.report is not None:
        from sdecor.sweep import report

        print(report.write(local_folder("--report", flags.report)))
        return 0
    if not flags.status:
        plan.check_repository()
    if flags.workdir is None:
        raise ValueError("--workdir is missing: name the folder of the sweep, or give --report DIR")
    folder = local_folder("--workdir", flags.workdir)
    jobs = flags.jobs if flags.jobs is not None else len(flags.gpus or "1".split())
    check_count("--jobs", jobs)
    if flags.gpus and jobs > len(flags.gpus):
        raise ValueError(f"--jobs = {jobs} is more than the devices in --gpus: each trial has one of its own")
    check_count("--replicas", flags.replicas)
    if flags.replicas > 1 and flags.slurm is not None:
        raise ValueError("--replicas is for this machine: a task of --slurm is one trial")
    sweep = plan.load(flags.config, flags.set) if flags.config else plan.read(folder)
    trials = sweep.trials(flags.only, plan.parse_seeds(flags.seeds) if flags.seeds else ())
    if flags.status:
        print(local.describe(trials, folder, jobs))
        return 0
    if flags.list:
        for trial in trials:
            for stage in commands.STAGES:
                print(commands.shown(commands.command(trial, stage, folder)))
        return 0
    if not flags.config:
        raise ValueError("--config is missing: name a sweep file, for example configs/sweeps/ablation.py")
    return start(sweep, trials, folder, jobs, flags)


def start(
    sweep: plan.Sweep, trials: Sequence[plan.Trial], folder: pathlib.Path, jobs: int, flags: argparse.Namespace
) -> int:
    """Validate the sweep, then run it here or submit it; return the exit status."""
    away = flags.slurm is not None
    files.check_checkpoints("--workdir", folder)
    files.check_writable("--workdir", folder)
    # The machine that submits need not have the accelerators.
    configs = check.check(sweep, trials, folder, os.environ | ({"JAX_PLATFORMS": "cpu"} if away else {}))
    plan.write(folder, sweep)
    for trial in trials:
        trial_folder.put_damaged_aside(folder / trial.key)
    if away:
        _submit(trials, folder, flags)
        return 0
    places = [{"CUDA_VISIBLE_DEVICES": name} for name in flags.gpus or ()]
    grouped = job.together(trials, folder, configs, flags.replicas)
    went_through = local.run_all(trials, folder, jobs=jobs, environments=places, grouped=grouped)
    print(local.describe(trials, folder, jobs))
    if not went_through:
        print("stopped: run the same command to continue")
        return INTERRUPTED
    if any(state != trial_folder.FINISHED for state in local.states(trials, folder).values()):
        return 1
    print("Next:", shlex.join(["python", "-m", "sdecor.sweep", "--report", str(folder)]))
    return 0


def _submit(trials: Sequence[plan.Trial], folder: pathlib.Path, flags: argparse.Namespace) -> None:
    """Submit the trials; wait for them where submitit runs them on this machine."""
    options = slurm.parse(flags.slurm)
    submitted = slurm.submit(trials, folder, options, flags.jobs)
    names = ", ".join(each.job_id for each in submitted) or "nothing is left to do"
    print(f"submitted {len(submitted)} tasks: {names}")
    if options.get("cluster") in ("local", "debug"):
        for each in submitted:
            each.wait()
        print(local.describe(trials, folder))


def local_folder(flag: str, path: str) -> pathlib.Path:
    """Return the absolute path of a local folder.

    Raises:
      ValueError: for a remote folder, where trials cannot be claimed, and for a path that cannot be a folder.
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
    known.add_argument("--workdir", help="folder of the sweep; a trial is in <cell>/seed<k> of it")
    known.add_argument("--report", metavar="DIR", help="write the tables and figures of the sweep in DIR to DIR/report")
    known.add_argument(
        "--status", action="store_true", help="print which trials are finished, running, failed and left"
    )
    known.add_argument("--list", action="store_true", help="print the command lines and run nothing")
    known.add_argument("--only", type=_names, default=(), metavar="CELL,…", help="only these cells")
    known.add_argument("--seeds", metavar="0:3", help="only these seeds")
    known.add_argument("--jobs", type=int, help="trials at a time; default 1")
    known.add_argument(
        "--replicas", type=int, default=1, metavar="R", help="train up to R trials that differ in numbers alone at once"
    )
    known.add_argument(
        "--gpus", type=_names, metavar="0,1,…", help="give each of the trials at a time one of these GPUs"
    )
    known.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change evaluate.FLAG or config.FIELD"
    )
    known.add_argument(
        "--slurm", nargs="*", metavar="NAME=VALUE", help="submit a Slurm array, with these options of submitit"
    )
    return known


def _names(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


if __name__ == "__main__":
    interrupt.install()
    main()
