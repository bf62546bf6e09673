"""Evaluate trained runs on the test split: predictions, features, and attribution maps by any methods and metrics.

    python evaluate.py --workdir=runs/ce [--workdir=runs/sdecor …] [--methods=standard] [--metrics=standard]

--methods and --metrics are lists of names and of the presets quick, standard and full. A method may have options:
--methods=quick,integrated_gradients:steps=20:baseline=blur. Each run's folder gets evaluation.json and report.html.
Several runs are compared on the same images: in a table of paired differences, and in comparison.html in --output.

--temperature=fitted divides each run's logits by one number, fitted on its validation split. Probabilities then compare
between runs, and so do metrics that sum probabilities, such as insertion.

Earlier results with the same settings are reused and shown again, so methods and metrics can be added one by one.
--noall_stored shows only the requested ones. Results for another --split, --target, --checkpoint or
--temperature are kept in separate files; evaluation.json and report.html show the latest evaluation.

    python evaluate.py --workdir=runs/ce --export=maps.zarr [--methods=standard] [--dtype=float16] [--reduce=abs_sum]

stores the maps of the whole split instead (see sdecor.export). The same command continues a stopped export.

    python evaluate.py --workdir=runs/ce --from_export=maps.zarr [--metrics=standard]

measures those stored maps instead of explaining again. The results are in from_export/<name of the export> of the
run's folder.
"""

from sdecor.core.interrupt import end_while_importing

if __name__ == "__main__":
    end_while_importing()  # the imports take seconds

import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from absl import flags
from etils import epath

from sdecor import evaluation, export, report
from sdecor.attribution import REDUCTIONS
from sdecor.core import commands, files, launch, parallel, processes, watchdog
from sdecor.data.batches import evaluation_indices
from sdecor.evaluation import Plan, Store, stored, summary, temperature
from sdecor.evaluation.runs import (
    IMAGES,
    Run,
    check_comparable,
    depends_of,
    options_of,
    plan_of,
    provenance_of,
    restore,
    run_names,
    source_of,
    subject_of,
)
from sdecor.report.run import Evaluated, evaluated_run, write_evaluation, write_report

FLAGS = flags.FLAGS
SHARED = (  # flags that all processes of a job must share; the runs' settings hold the others
    "workdir", "output", "methods", "metrics", "images", "chunk_size", "force", "retest", "all_stored", "export",
    "dtype", "reduce", "clip_percentile", "on_error", "from_export", "temperature",
)  # fmt: skip
USUAL = ("test", "predicted", "best", "temperature_1.0")  # values of flags that are not part of file names
EXPORT_SIZES = {
    "device_batch": "Images per device and batch in an export.",
    "chunk_rows": "Images per Zarr chunk of an export, a multiple of --device_batch; default: a few megabytes.",
    "shard_rows": "Images per file of several chunks, for few large files on remote storage.",
}


def define_flags() -> None:
    """Define the command line."""
    methods, metrics = ", ".join(evaluation.METHOD_PRESETS), ", ".join(evaluation.METRIC_PRESETS)
    flags.DEFINE_multi_string("workdir", None, "Folder of a run; repeat the flag to compare runs.", required=True)
    flags.DEFINE_string("output", None, "Folder of the report; default: the run's, or the parent of several runs.")
    launch.define_words("methods", ["quick"], f"Attribution methods, or presets: {methods}.", evaluation.split_words)
    launch.define_words("metrics", ["quick"], f"Metrics, or presets: {metrics}.", evaluation.split_words)
    flags.DEFINE_enum("split", "test", ["train", "val", "test"], "Split to evaluate on.")
    flags.DEFINE_string("checkpoint", "best", "Checkpoint: best (by validation accuracy), latest, or a step.")
    flags.DEFINE_enum("target", "predicted", list(evaluation.TARGETS), "Class whose score is explained.")
    flags.DEFINE_string(
        "temperature", "1", "Number that divides the logits; fitted: on the validation split, for each run."
    )
    flags.DEFINE_integer("images", 12, "Images in the gallery of explanations.", lower_bound=1)
    flags.DEFINE_string("data_path", None, "Replaces config.data.path, for data that was moved.")
    flags.DEFINE_string("data_dir", None, "Replaces config.data.data_dir, for TFDS data sets that were moved.")
    flags.DEFINE_integer("batch_size", None, "Replaces the run's evaluation.batch_size.", lower_bound=1)
    flags.DEFINE_integer("chunk_size", None, "Evaluations at once on a device; default: what fits.", lower_bound=1)
    for name in (*IMAGES, "curve_steps"):
        flags.DEFINE_integer(name, None, f"Replaces the run's evaluation.{name}.", lower_bound=1)
    flags.DEFINE_bool("progress", True, "Show a progress bar.")
    flags.DEFINE_bool("force", False, "Evaluate again instead of reusing stored results.")
    flags.DEFINE_bool("retest", False, "Measure what draws random numbers again, and show the metrics' own noise.")
    flags.DEFINE_bool("all_stored", True, "Also show stored results with the same settings.")
    flags.DEFINE_string("export", None, "Path for the maps of all images of the split; nothing is measured.")
    flags.DEFINE_enum("dtype", "float32", list(export.DTYPES), "Data type of exported maps.")
    flags.DEFINE_enum(
        "reduce", "abs_sum", [*REDUCTIONS, "none"], "Reduction over channels of exported maps; none keeps channels."
    )
    flags.DEFINE_float("clip_percentile", 100.0, "Percentile per image at which float16 and uint8 maps are clipped.")
    flags.DEFINE_enum("on_error", "stop", list(export.ON_ERROR), "Action of an export at an unreadable image.")
    flags.DEFINE_enum("check", "checksums", list(export.CHECKS), "How a continued export verifies finished files.")
    for name, what in EXPORT_SIZES.items():
        flags.DEFINE_integer(name, None, what, lower_bound=1)
    flags.DEFINE_string("from_export", None, "Measure the maps of this export of the run; default: all its methods.")
    flags.DEFINE_alias("from-export", "from_export")


def main() -> None:
    """Evaluate the runs of --workdir, or export the maps of one run, or measure exported maps."""
    if FLAGS.output is not None:
        files.check_output("--output", FLAGS.output)
    if FLAGS.export is not None:
        files.check_output("--export", FLAGS.export)
    if FLAGS.retest and (FLAGS.export is not None or FLAGS.from_export is not None):
        raise ValueError("--retest explains again: leave out --export and --from_export")
    value = temperature.parse(FLAGS.temperature)
    if value != 1 and (FLAGS.export is not None or FLAGS.from_export is not None):
        raise ValueError("--temperature is of a network that is explained now: leave out --export and --from_export")
    try:
        if parallel.is_main_process():
            check_writable(FLAGS.workdir)
        if FLAGS.export is not None:
            export_maps(FLAGS.workdir)
        elif FLAGS.from_export is not None:
            measure_export(FLAGS.workdir)
        else:
            evaluate(FLAGS.workdir, value)
    except OSError as error:
        raise disk_error(error) from error


def disk_error(error: OSError) -> Exception:
    """Return the error that ends the program for an error of a disk: a temporary one, unless a permission is missing.

    The message of an export says what is finished and how to continue.
    """
    exported = isinstance(error, export.StorageError)
    cause = error.__cause__ if exported and error.__cause__ is not None else error
    if isinstance(cause, PermissionError | FileNotFoundError) or getattr(cause, "errno", None) == errno.EROFS:
        return ValueError(str(error))
    told = exported or error.errno is None  # errors of ours say what to do
    kept = "" if told else ". Finished methods are kept: free space, or repair that, and run the same command again"
    return commands.TemporaryFailure(f"{error}{kept}")


def check_writable(folders: list[str]) -> None:
    """Raise `ValueError` unless files can be written where the results go, before hours are spent on them."""
    if FLAGS.export is not None:
        return files.check_writable("--export", FLAGS.export)
    if FLAGS.output is not None or len(folders) > 1:
        files.check_writable("--output", FLAGS.output or epath.Path(folders[0]).parent)
    if FLAGS.from_export is None or FLAGS.output is None:
        for folder in folders:
            files.check_writable("--workdir", folder)


def evaluate(folders: list[str], value: float | None) -> None:
    """Evaluate and report the runs in `folders`, and compare them if there are several.

    Their logits are divided by `value`; None for a temperature fitted to each run.
    """
    methods, metrics = evaluation.choose_methods(FLAGS.methods), evaluation.choose_metrics(FLAGS.metrics)
    runs = restore_runs(folders)
    if value != 1:
        runs = [temperature.with_temperature(run, value or 1.0) for run in runs]
    check_comparable(runs)
    plans = [planned(run, methods, metrics) for run in runs]  # plan all runs before hours are spent on the first
    if value is None:
        runs = [fitted(run) for run in runs]
    words = (FLAGS.split, FLAGS.target, FLAGS.checkpoint, f"temperature_{value or temperature.FITTED}")
    name = "".join(f"-{word}" for word in words if word not in USUAL)
    kept = {"name": name, "images": min(FLAGS.images, len(source_of(runs[0])))}
    stores = [complete(run, plan, run.folder, **kept) for run, plan in zip(runs, plans, strict=True)]
    noise = [measured_again(run, plan, store, name) for run, plan, store in zip(runs, plans, stores, strict=True)]
    if not parallel.is_main_process():
        return
    beside = folders[0] if len(runs) == 1 else epath.Path(folders[0]).parent
    output = files.make_folder("--output", FLAGS.output or beside)
    report_on([found(*each) for each in zip(runs, plans, stores, noise, strict=True)], folders, output)


def export_maps(folders: list[str]) -> None:
    """Export the maps of all images of the split for one run."""
    if len(folders) > 1:
        raise ValueError("--export takes one --workdir: export the runs one by one, each to a path of its own")
    if FLAGS["metrics"].present:
        raise ValueError("--export measures nothing: leave --metrics out")
    (run,) = restore_runs(folders)
    plan = planned(run, evaluation.choose_methods(FLAGS.methods), {})
    sizes = {name: FLAGS[name].value for name in ("chunk_size", *EXPORT_SIZES)}
    done = export.export_split(
        plan.setup,
        plan.explained().values(),
        run.variables,
        source_of(run),
        FLAGS.export,
        dtype=FLAGS.dtype,
        reduce=None if FLAGS.reduce == "none" else FLAGS.reduce,
        clip_percentile=FLAGS.clip_percentile,
        on_error=FLAGS.on_error,
        provenance=provenance_of(run),
        options=export.Options(**sizes, seed=run.settings["seed"], check=FLAGS.check, progress=FLAGS.progress),
    )
    if parallel.is_main_process():
        print(done)
    if not done.complete:
        raise SystemExit(commands.INTERRUPTED)


def measure_export(folders: list[str]) -> None:
    """Evaluate a run with its exported maps."""
    if len(folders) > 1:
        raise ValueError("--from_export takes one --workdir: an export is of one run")
    (run,), held = restore_runs(folders), export.open(FLAGS.from_export)
    source = source_of(run)
    same = {field: run.settings[field] for field in ("target", "saliency_of", "seed")}
    export.check_same(held, {"provenance": provenance_of(run), **same}, source)
    words = FLAGS.methods if FLAGS["methods"].present else None
    methods = export.stored_methods(held, words, run.settings["saliency_of"])
    maps, about = held.maps(), {"path": held.path, "dtype": held.attributes["dtype"], "sha256": held.digest}
    reduction = maps.reduction or run.settings["reduction"]
    run = dataclasses.replace(run, settings=run.settings | {"reduction": reduction, "from_export": about})
    plan = planned(run, methods, evaluation.choose_metrics(FLAGS.metrics), maps)
    beside = epath.Path(run.folder) / "from_export" / epath.Path(os.path.abspath(held.path)).stem
    output = files.make_folder("--output", FLAGS.output or beside)
    store = complete(run, plan, output, maps)
    if not parallel.is_main_process():
        return
    shown = stored.shown(maps, plan.explained(), evaluation_indices(len(source), FLAGS.images))
    evaluated = evaluated_run(run, plan, store.results, shown, store.other_versions(plan.all_parts()))
    report_on([evaluated], [output], output)


def restore_runs(folders: list[str]) -> list[Run]:
    """Restore the runs in `folders`, with the settings of the flags."""
    data = {"path": FLAGS.data_path, "data_dir": FLAGS.data_dir}
    changed = {name: FLAGS[name].value for name in ("batch_size", "curve_steps", *IMAGES)}
    chosen = {name: FLAGS[name].value for name in ("checkpoint", "split", "target")}
    named = zip(folders, run_names(folders), strict=True)
    runs = [restore(folder, name=name, data=data, evaluation=changed, **chosen) for folder, name in named]
    given = {name: FLAGS[name].value for name in SHARED} | {"versions": files.versions()}
    processes.compare("the evaluation", lambda: given | {run.name: run.settings for run in runs})
    return runs


def planned(run: Run, methods: Mapping[str, Any], metrics: Mapping[str, bool], maps: stored.Maps | None = None) -> Plan:
    """Return the plan of a run's evaluation; print which methods and metrics of presets are left out."""
    plan, notes = plan_of(run, methods, metrics, chunk_size=FLAGS.chunk_size, maps=maps)
    for note in notes if parallel.is_main_process() else ():
        print(f"{run.name}: {note}")
    return plan


def fitted(run: Run) -> Run:
    """Return a run with a temperature fitted on its validation split, and print it."""
    count = len(run.dataset.source("val"))
    with progress(run.name, "temperature", count) as advance:
        run = temperature.with_fitted_temperature(run, advance)
    if parallel.is_main_process():
        print(f"{run.name}: temperature {run.settings['temperature']}, fitted on {count:,} validation images")
    return run


def complete(
    run: Run, plan: Plan, folder: Any, maps: stored.Maps | None = None, *, name: str = "", images: int = 0
) -> Store:
    """Evaluate the parts of a plan that `folder` does not hold yet, and store them there."""
    now = {"versions": files.versions(), "fresh": FLAGS.force, "writes": parallel.is_main_process()}
    store = Store(folder, depends_of(run), name=name, images=images, **now)
    processes.compare(f"the results that are stored in {folder}", store.held)
    store.complete(plan, subject_of(run, plan.setup), partial(progress, run.name), maps)
    return store


def measured_again(run: Run, plan: Plan, store: Store, name: str) -> Mapping[str, Mapping[str, Any]]:
    """With --retest, measure the parts of a plan that draw random numbers with the next seed; return their noise."""
    if not FLAGS.retest:
        return {}
    again = dataclasses.replace(run, settings=run.settings | {"seed": run.settings["seed"] + 1})
    plan = plan.drawn()
    second = complete(again, plan, run.folder, name=f"{name}-retest")
    return summary.retest(store.results, plan.select(second.results))


def found(run: Run, plan: Plan, store: Store, noise: Mapping[str, Mapping[str, Any]]) -> Evaluated:
    """Return the results of a run's plan and, unless --noall_stored, its earlier results."""
    plan = plan.with_stored(store.parts, options_of(run)) if FLAGS.all_stored else plan
    others = store.other_versions(plan.all_parts())
    return evaluated_run(run, plan, store.results, store.shown(plan), others, noise=noise)


def report_on(evaluated: list[Evaluated], folders: Sequence[Any], output: epath.Path) -> None:
    """Write each run's numbers to its folder and the common report to `output`, and print the table of all runs."""
    several = len(evaluated) > 1
    for each, folder in zip(evaluated, folders, strict=True):
        write_evaluation(folder, each)
        if several:
            write_report(folder, [each])
    comparisons = write_report(output, evaluated)
    print(report.terminal_table({each.name: each.summary for each in evaluated}, comparisons))
    pages = ("comparison.html", "comparison.json", "saliency.png") if several else ("report.html",)
    written = [] if several else [f"{folders[0]}/evaluation.json"]
    print(f"\nWritten: {', '.join([*written, *(f'{output}/{page}' for page in pages)])}")


@contextlib.contextmanager
def progress(run: str, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar and yield the function that advances it by a number of examples."""
    shown = FLAGS.progress and parallel.is_main_process()
    with commands.progress_bar(total=total, initial=0, description=f"{run}: {what}", enabled=shown) as bar:

        def advance(count: int) -> None:
            watchdog.beat(f"{run}: {what}")
            bar.update(min(count, total - bar.n))

        yield advance


if __name__ == "__main__":
    define_flags()
    launch.run(main, kept="Finished methods are kept: run the same command to continue.")
