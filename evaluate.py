"""Evaluate trained runs on the test split: accuracy, calibration, features and saliency, with intervals and pictures.

    python evaluate.py --workdir=runs/ce [--workdir=runs/sdecor …] [--output=runs]

Each run gets evaluation.json and report.html in its folder. Several runs are compared on the same images: a table of
paired differences, and comparison.html in --output. What was evaluated before with the same settings is reused.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sdecor import build, cli, evaluation, logbook, parallel, report, summary, workdir
from sdecor.checkpoint import Checkpoints, checksums
from sdecor.checks import check_choice
from sdecor.data import center_crop, evaluation_batches

FLAGS = flags.FLAGS
BASELINES = {"insertion_baseline": "blur", "deletion_baseline": "zero"}


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, restored, with what its evaluation needs."""

    folder: str
    config: ConfigDict
    recorded: dict[str, Any]  # config.json
    dataset: Any
    model: Any
    variables: Any
    settings: dict[str, Any]  # all that the evaluation's numbers depend on

    def apply(self, variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return `(logits, features)` of the network in evaluation mode."""
        return self.model.apply(variables, images, train=False)


def define_flags() -> None:
    """Define the command line."""
    flags.DEFINE_multi_string("workdir", None, "Folder of a run; repeat to compare.", required=True)
    flags.DEFINE_string("output", None, "Folder of the comparison; default: the parent of the first workdir.")
    flags.DEFINE_enum("split", "test", ["train", "val", "test"], "What to evaluate on.")
    flags.DEFINE_string("checkpoint", "best", "best (by validation accuracy), latest, or a step.")
    flags.DEFINE_enum("target", "predicted", list(evaluation.TARGETS), "The class whose score is explained.")
    flags.DEFINE_integer("images", 12, "Images in the figure of explanations.", lower_bound=1)
    flags.DEFINE_string("data_path", None, "Where the data of config.data.path lie now.")
    flags.DEFINE_string("data_dir", None, "Where TFDS data sets lie now.")
    flags.DEFINE_integer("batch_size", None, "Instead of the run's evaluation.batch_size.", lower_bound=1)
    flags.DEFINE_integer("curve_images", None, "Instead of evaluation.curve_images.", lower_bound=1)
    flags.DEFINE_integer("curve_steps", None, "Instead of evaluation.curve_steps.", lower_bound=1)
    flags.DEFINE_bool("progress", True, "Show a progress bar.")
    flags.DEFINE_bool("force", False, "Evaluate again what was evaluated before with the same settings.")


def main() -> None:
    """Evaluate the runs that the flags name."""
    try:
        evaluate(FLAGS.workdir)
    except KeyboardInterrupt:
        raise SystemExit("evaluate.py: stopped; finished runs are kept, run the same command to go on") from None


def evaluate(folders: list[str]) -> None:
    """Evaluate the runs in `folders`, report each, and compare them where there are several."""
    runs = dict(zip(run_names(folders), [restore(folder) for folder in folders], strict=True))
    check_comparable(runs)
    results, summaries = {}, {}
    for name, run in runs.items():
        results[name] = results_of(run, name)
        summaries[name] = summary_of(run, results[name])
    pictures = {name: explained_images(run) for name, run in runs.items()}
    if not parallel.is_main_process():
        return
    for name, run in runs.items():
        write_report(epath.Path(run.folder), [name], runs, results, summaries, pictures)
    if len(runs) == 1:
        (run,) = runs.values()
        print(report.terminal_table(summaries))
        print(f"\nWritten: {run.folder}/evaluation.json, {run.folder}/report.html")
        return
    output = epath.Path(FLAGS.output or epath.Path(folders[0]).parent)
    output.mkdir(parents=True, exist_ok=True)
    comparisons = write_report(output, list(runs), runs, results, summaries, pictures)
    print(report.terminal_table(summaries, comparisons))
    print(f"\nWritten: {output}/comparison.html, {output}/comparison.json, {output}/saliency.png")


def check_comparable(runs: dict[str, Run]) -> None:
    """Raise `ValueError`, naming the fields, unless all runs are measured alike on the same images."""

    def measured(run: Run) -> dict[str, Any]:
        data = {name: run.recorded["dataset"][name] for name in ("name", "class_names", "image_shape")}
        settings = {name: value for name, value in run.settings.items() if name not in ("step", "parameters")}
        chosen = {name: run.recorded["config"]["data"][name] for name in ("canvas", "canvas_fit", "channels", "limit")}
        return {"dataset": data, "settings": settings, "data": chosen, "size": run.config.augment.size}

    reference, *others = runs
    for name in others:
        differences = workdir.differing_fields(measured(runs[reference]), measured(runs[name]))
        if differences:
            listed = "\n".join(f"  {field}: {a!r} and {b!r}" for field, (a, b) in differences.items())
            raise ValueError(
                f"{runs[reference].folder} and {runs[name].folder} are not measured alike:\n{listed}\n"
                "Compare runs of the same data and the same evaluation, or evaluate them one by one."
            )


def run_names(folders: list[str]) -> list[str]:
    """Name runs by their method where that tells them apart, else by their folder.

    Raises:
      ValueError: when a folder is given twice.
    """
    paths = [str(epath.Path(folder)) for folder in folders]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise ValueError(f"--workdir={twice[0]} is given twice: a run is compared with other runs")
    for names in (
        [workdir.read(folder)["config"]["method"] for folder in folders],
        [epath.Path(folder).name for folder in folders],
    ):
        if len(set(names)) == len(names):
            return names
    return paths


def restore(folder: str) -> Run:
    """Read a run's config, data set and checkpoint.

    Raises:
      ValueError: when there is no run, or no such checkpoint, or it is damaged.
    """
    recorded = workdir.read(folder)
    config = ConfigDict(recorded["config"])
    known = recorded["dataset"]
    config.data.update({"mean": known["mean"], "std": known["std"]})
    config.data.path = FLAGS.data_path or config.data.path
    config.data.data_dir = FLAGS.data_dir or config.data.data_dir
    options = config.evaluation
    options.batch_size = FLAGS.batch_size or options.batch_size
    options.curve_images = FLAGS.curve_images or options.curve_images
    options.curve_steps = FLAGS.curve_steps or options.curve_steps
    dataset = build.create_data(config)
    image_shape = build.image_size(config, tuple(known["image_shape"]))
    model = build.create_model(config, known["num_classes"], image_shape, tapped=False)
    state = build.create_state(config, model, image_shape)
    with Checkpoints(folder, create=False) as checkpoints:
        restored = checkpoints.restore(state, _step(checkpoints))
    if restored is None:
        raise ValueError(f"{folder} has no checkpoint yet: train it with train.py first")
    state, _ = restored
    settings = {
        "split": FLAGS.split,
        "step": int(state.step),
        "parameters": checksums(state.variables),
        "method": "gradient",
        "saliency_of": options.saliency_of,
        "reduction": "abs_sum",
        "target": FLAGS.target,
        "curve_steps": options.curve_steps,
        "curve_images": options.curve_images,
        "resamples": options.resamples,
        **BASELINES,
    }
    return Run(folder, config, recorded, dataset, model, state.variables, workdir.plain(settings))


def _step(checkpoints: Checkpoints) -> int | None:
    if FLAGS.checkpoint == "latest":
        return None
    if FLAGS.checkpoint == "best":
        return checkpoints.best_step()
    if not FLAGS.checkpoint.isdigit():
        check_choice("--checkpoint", FLAGS.checkpoint, ("best", "latest", *map(str, checkpoints.steps())))
    return int(FLAGS.checkpoint)


def results_of(run: Run, name: str) -> evaluation.Results:
    """Return a run's per-example results: those stored, if their settings are the same, else computed and stored."""
    path = epath.Path(run.folder) / "evaluation.npz"
    stored = None if FLAGS.force else evaluation.load(path, run.settings)
    if stored is not None:
        return stored
    source = run.dataset.source(FLAGS.split)
    size, few = len(source), run.config.evaluation.curve_images
    results = collect(run, source, name, limit=few)
    if few is not None and few < size:
        results = evaluation.extend(collect(run, source, name, limit=None, curve_steps=0), results)
    if parallel.is_main_process():
        evaluation.save(path, results, run.settings)
    return results


def batches_of(run: Run, source: Any, limit: int | None) -> Any:
    """Return this process's padded batches of `limit` examples of `source`, or of all."""
    return evaluation_batches(
        source,
        batch_size=parallel.round_up(run.config.evaluation.batch_size),
        limit=limit,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def collect(
    run: Run, source: Any, name: str, *, limit: int | None, curve_steps: int | None = None
) -> evaluation.Results:
    """Evaluate `limit` examples of `source` on all devices of all processes."""
    steps = run.settings["curve_steps"] if curve_steps is None else curve_steps
    measure = evaluation.make_example_metrics(run.apply, steps=steps, **BASELINES, **explanation(run))
    compiled = parallel.pmap_evaluation(measure)
    key = parallel.replicate(jax.random.key(0))
    shown = FLAGS.progress and parallel.is_main_process()
    total = min(limit or len(source), len(source))
    with logbook.progress_bar(total=total, initial=0, description=f"evaluating {name}", enabled=shown) as bar:

        def step(batch: dict[str, np.ndarray]) -> Any:
            outputs = compiled(run.variables, parallel.shard(batch), key)
            bar.update(min(int(batch["weight"].sum()) * jax.process_count(), total - bar.n))
            return outputs if jax.process_count() == 1 else parallel.gather(parallel.to_host(outputs))

        return evaluation.collect(step, batches_of(run, source, limit))


def explanation(run: Run) -> dict[str, Any]:
    """Return the options of `evaluation.make_explain` for this run."""
    return {
        "mean": run.dataset.mean,
        "std": run.dataset.std,
        "size": run.config.augment.size,
        **{name: run.settings[name] for name in ("method", "saliency_of", "reduction", "target")},
    }


def summary_of(run: Run, results: evaluation.Results) -> dict[str, dict]:
    """Summarise a run's results and write them to its evaluation.json."""
    numbers = summary.summarise(results, n_resamples=run.settings["resamples"])
    content = {
        "settings": run.settings,
        "examples": int(results.examples["index"].size),
        "metrics": numbers,
        "versions": workdir.versions(),
    }
    if parallel.is_main_process():
        workdir.write_json(epath.Path(run.folder) / "evaluation.json", content)
    return numbers


def explained_images(run: Run) -> dict[str, np.ndarray]:
    """Explain some images of the split: `image`, `label`, `prediction`, `maps` and, where known, `object`."""
    compiled = parallel.pmap_evaluation(evaluation.make_explain(run.apply, **explanation(run)))
    key = parallel.replicate(jax.random.key(0))
    source, size = run.dataset.source(FLAGS.split), run.config.augment.size
    parts = []
    for batch in batches_of(run, source, FLAGS.images):
        found = parallel.unshard(compiled(run.variables, parallel.shard(batch), key))
        part = {"image": center_crop(batch["image"], size), "label": batch["label"], "weight": batch["weight"]}
        part |= {name: found[name] for name in ("prediction", "maps")}
        if "object" in batch:
            part["object"] = center_crop(batch["object"], size) == 1
        part = parallel.gather(part)
        parts.append({name: values[part["weight"] > 0] for name, values in part.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def write_report(
    output: epath.Path,
    names: list[str],
    runs: dict[str, Run],
    results: dict[str, evaluation.Results],
    summaries: dict[str, dict],
    pictures: dict[str, dict],
) -> dict[str, dict]:
    """Write the page and figures of the runs `names` into `output`; return paired differences to the first."""
    reference, *others = names
    first = runs[reference]
    resamples = first.settings["resamples"]
    comparisons = {
        name: summary.compare(results[reference], results[name], n_resamples=resamples) for name in others
    }
    settings = {name: value for name, value in first.settings.items() if name not in ("parameters", "step")}
    steps = ", ".join(f"{name} {runs[name].settings['step']}" for name in names)
    data = first.recorded["dataset"]
    facts = {"data set": data["name"], "checkpoint step": steps, **settings, "versions": workdir.versions()}
    report.run_report(
        output,
        summaries={name: summaries[name] for name in names},
        comparisons=comparisons,
        pictures={name: pictures[name] for name in names},
        curves={name: summary.mean_curves(results[name]) for name in names},
        rows={name: logbook.read_rows(runs[name].folder) for name in names},
        configs={name: runs[name].recorded["config"] for name in names},
        class_names=data["class_names"],
        facts={name: value for name, value in facts.items() if value is not None},
    )
    if others:
        workdir.write_json(output / "comparison.json", {"reference": reference, "differences": comparisons})
    return comparisons


if __name__ == "__main__":
    define_flags()
    cli.run(main)
