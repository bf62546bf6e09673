"""Evaluate trained runs on the test split: predictions, features, and explanations by any method and metric.

    python evaluate.py --workdir=runs/ce [--workdir=runs/sdecor …] [--methods=standard] [--metrics=standard]

--methods and --metrics are lists of names and of the presets quick, standard and full; a method may have options:
--methods=quick,integrated_gradients:steps=20:baseline=blur. Each run gets evaluation.json and report.html in its
folder. Several runs are compared on the same images: a table of paired differences, and comparison.html in --output.
What was evaluated before with the same settings is reused, so methods and metrics can be added one by one.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from sdecor import cli, evaluation, logbook, parallel, report, summary, workdir
from sdecor.attribution import reduce
from sdecor.data import center_crop
from sdecor.data.batches import object_mask
from sdecor.evaluation import Plan, Results, Setup, Store, Subject
from sdecor.runs import Run, check_comparable, restore, run_names

FLAGS = flags.FLAGS
# On how many images measures are taken, by the field that says so, and what those measures need.
IMAGES = {
    "map_images": ("maps", "object"),
    "curve_images": ("network",),
    "robustness_images": ("explanation", "parameters", "set", "mosaic"),
}


def define_flags() -> None:
    """Define the command line."""
    methods, metrics = ", ".join(evaluation.METHOD_PRESETS), ", ".join(evaluation.METRIC_PRESETS)
    flags.DEFINE_multi_string("workdir", None, "Folder of a run; repeat to compare.", required=True)
    flags.DEFINE_string("output", None, "Folder of the comparison; default: the parent of the first workdir.")
    flags.DEFINE_list("methods", ["quick"], f"Attribution methods, or presets: {methods}.")
    flags.DEFINE_list("metrics", ["quick"], f"Metrics, or presets: {metrics}.")
    flags.DEFINE_enum("split", "test", ["train", "val", "test"], "What to evaluate on.")
    flags.DEFINE_string("checkpoint", "best", "best (by validation accuracy), latest, or a step.")
    flags.DEFINE_enum("target", "predicted", list(evaluation.TARGETS), "The class whose score is explained.")
    flags.DEFINE_integer("images", 12, "Images in the gallery of explanations.", lower_bound=1)
    flags.DEFINE_string("data_path", None, "Where the data of config.data.path lie now.")
    flags.DEFINE_string("data_dir", None, "Where TFDS data sets lie now.")
    flags.DEFINE_integer("batch_size", None, "Instead of the run's evaluation.batch_size.", lower_bound=1)
    flags.DEFINE_integer("chunk_size", None, "Evaluations in flight on a device; default: what fits.", lower_bound=1)
    for name in (*IMAGES, "curve_steps"):
        flags.DEFINE_integer(name, None, f"Instead of the run's evaluation.{name}.", lower_bound=1)
    flags.DEFINE_bool("progress", True, "Show a progress bar.")
    flags.DEFINE_bool("force", False, "Evaluate again what was evaluated before with the same settings.")


def main() -> None:
    """Evaluate the runs that the flags name."""
    try:
        evaluate(FLAGS.workdir)
    except KeyboardInterrupt:
        raise SystemExit("evaluate.py: stopped; finished methods are kept, run the same command to go on") from None


def evaluate(folders: list[str]) -> None:
    """Evaluate the runs in `folders`, report each, and compare them where there are several."""
    methods, metrics = evaluation.choose_methods(FLAGS.methods), evaluation.choose_metrics(FLAGS.metrics)
    runs = dict(zip(run_names(folders), [restore_run(folder) for folder in folders], strict=True))
    check_comparable(runs)
    plans = {name: plan_of(run, name, methods, metrics) for name, run in runs.items()}
    stores = {name: complete(run, name, plans[name]) for name, run in runs.items()}
    if not parallel.is_main_process():
        return
    results = {name: plans[name].select(store.results) for name, store in stores.items()}
    pictures = {name: pictures_of(run, plans[name], stores[name]) for name, run in runs.items()}
    summaries = {name: summary_of(run, plans[name], results[name]) for name, run in runs.items()}
    for name, run in runs.items():
        write_report(epath.Path(run.folder), {name: run}, plans, results, summaries, pictures)
    if len(runs) == 1:
        (run,) = runs.values()
        print(report.terminal_table(summaries))
        print(f"\nWritten: {run.folder}/evaluation.json, {run.folder}/report.html")
        return
    output = epath.Path(FLAGS.output or epath.Path(folders[0]).parent)
    output.mkdir(parents=True, exist_ok=True)
    comparisons = write_report(output, runs, plans, results, summaries, pictures)
    print(report.terminal_table(summaries, comparisons))
    print(f"\nWritten: {output}/comparison.html, {output}/comparison.json, {output}/saliency.png")


def restore_run(folder: str) -> Run:
    """Restore a run as the flags say."""
    return restore(
        folder,
        checkpoint=FLAGS.checkpoint,
        split=FLAGS.split,
        target=FLAGS.target,
        data={"path": FLAGS.data_path, "data_dir": FLAGS.data_dir},
        evaluation={name: FLAGS[name].value for name in ("batch_size", "curve_steps", *IMAGES)},
    )


def plan_of(run: Run, name: str, methods: Mapping[str, Any], metrics: Mapping[str, bool]) -> Plan:
    """Return what is evaluated of a run, and say what of a preset is not."""
    dataset, settings, source = run.dataset, run.settings, run.dataset.source(FLAGS.split)
    setup = Setup(
        run.apply,
        mean=tuple(dataset.mean),
        std=tuple(dataset.std),
        size=run.config.augment.size,
        chunk_size=FLAGS.chunk_size,
        **{field: settings[field] for field in ("target", "saliency_of", "reduction")},
    )
    example = source[0]
    batch = {"image": example["image"], "label": np.int32(0), "index": np.int32(0), "weight": np.float32(1)}
    mask = object_mask(example)
    batch |= {} if mask is None else {"object": mask}
    counts = {field: min(settings[field] or len(source), len(source)) for field in IMAGES}
    plan, notes = evaluation.make_plan(
        setup,
        methods,
        metrics,
        variables=run.variables,
        batch={field: np.asarray(value)[None] for field, value in batch.items()},
        images={needs: counts[field] for field, all_needs in IMAGES.items() for needs in all_needs},
        options={
            "replacement": {"steps": settings["curve_steps"]},
            **{name: {"saliency_of": settings["saliency_of"]} for name in ("completeness", "infidelity")},
        },
    )
    for note in notes if parallel.is_main_process() else ():
        print(f"{name}: {note}")
    return plan


def complete(run: Run, name: str, plan: Plan) -> Store:
    """Evaluate what is not stored of a run."""
    settings, config = run.settings, run.config.evaluation
    store = Store(
        run.folder,
        {field: settings[field] for field in ("split", "step", "parameters", "target", "seed")},
        images=min(FLAGS.images, len(run.dataset.source(FLAGS.split))),
        fresh=FLAGS.force,
        writes=parallel.is_main_process(),
    )
    variables = parallel.replicate(run.variables)
    subject = Subject(plan.setup, variables, run.dataset.source(FLAGS.split), config.batch_size, settings["seed"])
    store.complete(plan, subject, partial(progress, name))
    return store


@contextlib.contextmanager
def progress(run: str, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar and give the function that moves it on."""
    shown = FLAGS.progress and parallel.is_main_process()
    with logbook.progress_bar(total=total, initial=0, description=f"{run}: {what}", enabled=shown) as bar:
        yield lambda count: bar.update(min(count, total - bar.n))


def summary_of(run: Run, plan: Plan, results: Results) -> dict[str, dict]:
    """Summarise a run's results and write them to its evaluation.json."""
    numbers = summary.summarise(results, n_resamples=run.settings["resamples"])
    content = {
        "settings": run.settings | plan.settings(),
        "examples": int(results.examples["index"].size),
        "metrics": numbers,
        "versions": workdir.versions(),
    }
    workdir.write_json(epath.Path(run.folder) / "evaluation.json", content)
    return numbers


def pictures_of(run: Run, plan: Plan, store: Store) -> dict[str, Any]:
    """Return some images with their predictions and maps, as the gallery shows them: see `report.run_report`."""
    source, size = run.dataset.source(FLAGS.split), run.config.augment.size
    index, examples = store.attributions.examples["index"], store.results.examples
    chosen = [source[int(i)] for i in index]
    place = np.searchsorted(examples["index"], index)
    pictures = {name: examples[name][place] for name in ("label", "prediction", "confidence")}
    pictures["image"] = center_crop(np.stack([example["image"] for example in chosen]), size)
    masks = [object_mask(example) for example in chosen]
    if masks[0] is not None:
        pictures["object"] = center_crop(np.stack(masks), size) == 1
    attributions = {key: store.attributions.examples[key] for key in plan.explained()}
    signed = {key: np.asarray(reduce(values, how="sum")) for key, values in attributions.items()}
    return pictures | {
        "maps": {key: np.asarray(reduce(x, how=plan.setup.reduction)) for key, x in attributions.items()},
        "signed": {key: maps for key, maps in signed.items() if (maps < 0).any()},
    }


def write_report(
    output: epath.Path,
    runs: Mapping[str, Run],
    plans: Mapping[str, Plan],
    results: Mapping[str, Results],
    summaries: Mapping[str, dict],
    pictures: Mapping[str, dict],
) -> dict[str, dict]:
    """Write the page and figures of `runs` into `output`; return paired differences to the first."""
    reference, *others = runs
    first = runs[reference]
    resamples = first.settings["resamples"]
    comparisons = {name: summary.compare(results[reference], results[name], n_resamples=resamples) for name in others}
    data = first.recorded["dataset"]
    settings = {name: value for name, value in first.settings.items() if name not in ("parameters", "step")}
    facts = {"data set": data["name"], **settings, **plans[reference].settings(), "versions": workdir.versions()}
    facts["checkpoint step"] = {name: run.settings["step"] for name, run in runs.items()}
    report.run_report(
        output,
        summaries={name: summaries[name] for name in runs},
        comparisons=comparisons,
        pictures={name: pictures[name] for name in runs},
        curves={name: plans[name].with_percentages(summary.mean_curves(results[name])) for name in runs},
        rows={name: logbook.read_rows(run.folder) for name, run in runs.items()},
        configs={name: run.recorded["config"] for name, run in runs.items()},
        class_names=data["class_names"],
        facts={name: value for name, value in facts.items() if value is not None},
    )
    if others:
        workdir.write_json(output / "comparison.json", {"reference": reference, "differences": comparisons})
    return comparisons


if __name__ == "__main__":
    define_flags()
    cli.run(main)
