"""Evaluate trained runs on the test split: accuracy, calibration, features and saliency, with intervals and pictures.

    python evaluate.py --workdir=runs/ce [--workdir=runs/sdecor …] [--output=runs]

Each run gets evaluation.json and report.html in its folder. Several runs are compared on the same images: a table of
paired differences, and comparison.html in --output. What was evaluated before with the same settings is reused.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict

from sdecor import build, evaluation, logbook, parallel, report, summary, workdir
from sdecor.checkpoint import Checkpoints, checksums
from sdecor.checks import check_choice
from sdecor.data import center_crop, evaluation_batches

_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "Folder of a run; repeat to compare.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the comparison; default: the parent of the first workdir.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "val", "test"], "What to evaluate on.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by validation accuracy), latest, or a step.")
_IMAGES = flags.DEFINE_integer("images", 12, "Images in the figure of explanations.", lower_bound=1)
_TARGET = flags.DEFINE_enum("target", "predicted", list(evaluation.TARGETS), "The class whose score is explained.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show a progress bar.")
_FORCE = flags.DEFINE_bool("force", False, "Evaluate again what was evaluated before with the same settings.")

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


def main(argv: list[str]) -> None:
    """Parse flags and evaluate; errors in what was asked for end with one clear line."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; repeat --workdir for several runs")
    logging.set_verbosity(logging.WARNING)
    try:
        evaluate(_WORKDIRS.value)
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("SDECOR_TRACEBACK"):
            raise
        sys.exit(f"evaluate.py: {error}")
    except KeyboardInterrupt:
        sys.exit("evaluate.py: stopped; runs evaluated so far are kept, run the same command to go on")


def evaluate(folders: list[str]) -> None:
    """Evaluate the runs in `folders`, report each, and compare them where there are several."""
    runs = dict(zip(run_names(folders), [restore(folder) for folder in folders], strict=True))
    results = {name: results_of(run, name) for name, run in runs.items()}
    summaries = {name: summary_of(runs[name], result) for name, result in results.items()}
    if not parallel.is_main_process():
        return
    pictures = {name: explained_images(run) for name, run in runs.items()}
    for name, run in runs.items():
        write_report(epath.Path(run.folder), [name], runs, results, summaries, pictures)
    if len(runs) == 1:
        (run,) = runs.values()
        print(report.terminal_table(summaries))
        print(f"\nWritten: {run.folder}/evaluation.json, {run.folder}/report.html")
        return
    output = epath.Path(_OUTPUT.value or epath.Path(folders[0]).parent)
    output.mkdir(parents=True, exist_ok=True)
    comparisons = write_report(output, list(runs), runs, results, summaries, pictures)
    print(report.terminal_table(summaries, comparisons))
    print(f"\nWritten: {output}/comparison.html, {output}/comparison.json, {output}/saliency.png")


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
    build.check_config(config)
    known = recorded["dataset"]
    config.data.mean, config.data.std = known["mean"], known["std"]
    dataset = build.create_data(config)
    image_shape = build.image_size(config, tuple(known["image_shape"]))
    model = build.create_model(config, known["num_classes"], image_shape)
    state = build.create_state(config, model, image_shape)
    with Checkpoints(folder, create=False) as checkpoints:
        restored = checkpoints.restore(state, _step(checkpoints, folder))
    if restored is None:
        raise ValueError(f"{folder} has no checkpoint yet: train it with train.py first")
    state, _ = restored
    options = config.evaluation
    settings = {
        "split": _SPLIT.value,
        "step": int(state.step),
        "parameters": checksums(state.variables),
        "method": "gradient",
        "saliency_of": options.saliency_of,
        "reduction": "abs_sum",
        "target": _TARGET.value,
        "curve_steps": options.curve_steps,
        "curve_images": options.curve_images,
        "resamples": options.resamples,
        **BASELINES,
    }
    return Run(folder, config, recorded, dataset, model, state.variables, workdir.plain(settings))


def _step(checkpoints: Checkpoints, folder: str) -> int | None:
    if _CHECKPOINT.value == "latest":
        return None
    if _CHECKPOINT.value == "best":
        return checkpoints.best_step()
    if not _CHECKPOINT.value.isdigit():
        check_choice("--checkpoint", _CHECKPOINT.value, ("best", "latest", *map(str, checkpoints.steps())))
    return int(_CHECKPOINT.value)


def results_of(run: Run, name: str) -> evaluation.Results:
    """Return a run's per-example results: those stored, if their settings are the same, else computed and stored."""
    numbers, arrays = epath.Path(run.folder) / "evaluation.json", epath.Path(run.folder) / "evaluation.npz"
    if not _FORCE.value and numbers.exists() and arrays.exists():
        if json.loads(numbers.read_text()).get("settings") == run.settings:
            return evaluation.load(arrays)
    source = run.dataset.source(_SPLIT.value)
    size, few = len(source), run.config.evaluation.curve_images
    results = collect(run, source, name, limit=few)
    if few is not None and few < size:
        everything = collect(run, source, name, limit=None, curve_steps=0)
        results = evaluation.extend(everything, results)
    if parallel.is_main_process():
        evaluation.save(arrays, results)
    return results


def collect(
    run: Run, source: Any, name: str, *, limit: int | None, curve_steps: int | None = None
) -> evaluation.Results:
    """Evaluate `limit` examples of `source` on all devices of all processes."""
    steps = run.settings["curve_steps"] if curve_steps is None else curve_steps
    measure = evaluation.make_example_metrics(apply_fn(run), steps=steps, **BASELINES, **explanation(run))
    compiled = parallel.pmap_evaluation(measure)
    key = parallel.replicate(jax.random.key(0))
    batch_size = run.config.evaluation.batch_size
    batches = evaluation_batches(
        source,
        batch_size=batch_size,
        limit=limit,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    shown = _PROGRESS.value and parallel.is_main_process()
    total = min(limit or len(source), len(source))
    with logbook.progress_bar(total=total, initial=0, description=f"evaluating {name}", enabled=shown) as bar:

        def step(batch: dict[str, np.ndarray]) -> Any:
            outputs = compiled(run.variables, parallel.shard(batch), key)
            bar.update(min(batch_size, total - bar.n))
            return outputs if jax.process_count() == 1 else parallel.gather(parallel.to_host(outputs))

        return evaluation.collect(step, batches)


def apply_fn(run: Run) -> Callable:
    """Return the network in evaluation mode, `(variables, images) -> (logits, features [N, D])`."""

    def apply(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, features = run.model.apply(variables, images, train=False)
        first = jax.tree.leaves(features)[0]
        return logits, first.reshape(first.shape[0], -1, first.shape[-1]).mean(1)

    return apply


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
    compiled = parallel.pmap_evaluation(evaluation.make_explain(apply_fn(run), **explanation(run)))
    key = parallel.replicate(jax.random.key(0))
    source, size = run.dataset.source(_SPLIT.value), run.config.augment.size
    parts = []
    for batch in evaluation_batches(source, batch_size=run.config.evaluation.batch_size, limit=_IMAGES.value):
        found = parallel.unshard(compiled(run.variables, parallel.shard(batch), key))
        part = {"image": center_crop(batch["image"], size), "label": batch["label"]}
        part |= {name: found[name] for name in ("prediction", "maps")}
        if "object" in batch:
            part["object"] = center_crop(batch["object"], size) == 1
        parts.append({name: values[batch["weight"] > 0] for name, values in part.items()})
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
    resamples = runs[reference].settings["resamples"]
    comparisons = {
        name: summary.compare(results[reference], results[name], n_resamples=resamples) for name in others
    }
    figures = report_figures(names, runs, results, pictures, comparisons)
    data = runs[reference].recorded["dataset"]
    settings = {name: value for name, value in runs[reference].settings.items() if name not in ("parameters", "step")}
    steps = ", ".join(f"{name} {runs[name].settings['step']}" for name in names)
    facts = {"data set": data["name"], "checkpoint step": steps, **settings, "versions": workdir.versions()}
    report.html_report(
        output / ("comparison.html" if others else "report.html"),
        title=" against ".join(names[::-1]) if others else f"{reference} on {data['name']}",
        summaries={name: summaries[name] for name in names},
        comparisons=comparisons,
        configs={name: runs[name].recorded["config"] for name in names},
        facts={name: value for name, value in facts.items() if value is not None},
        figures=list(figures.values()),
    )
    for name, (_, _, themes) in figures.items():
        report.save_figure(themes["light"], output / f"{name}.png")
    if others:
        workdir.write_json(output / "comparison.json", {"reference": reference, "differences": comparisons})
    return comparisons


def report_figures(
    names: list[str],
    runs: dict[str, Run],
    results: dict[str, evaluation.Results],
    pictures: dict[str, dict],
    comparisons: dict[str, dict],
) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Return the page's figures in order: name → (heading, caption, figure by theme)."""
    drawn = {
        "saliency": (
            "Gradient saliency of the same images",
            "Each map is divided by its sum, so a colour is a share of the map's saliency; the maps of one image share "
            "one scale. The outline is the object, where the data set has it.",
            partial(_draw_saliency, runs[names[0]], {name: pictures[name] for name in names}),
        ),
        "differences": (
            "Paired differences",
            f"To {names[0]}, on the same images; better is to the right.",
            partial(report.figure_differences, comparisons, reference=names[0]),
        ),
        "curves": (
            "Insertion and deletion",
            "Mean over the images; dotted, a random order of pixels on the same network.",
            partial(report.figure_curves, {name: summary.mean_curves(results[name]) for name in names}),
        ),
        "training": (
            "Training",
            "The loss is that of each run's own objective, so only accuracies compare.",
            partial(report.figure_training, {name: logbook.read_rows(runs[name].folder) for name in names}),
        ),
    }
    if not comparisons:
        del drawn["differences"]
    themes = ("light", "dark")
    return {
        name: (heading, caption, {theme: draw(theme=theme) for theme in themes})
        for name, (heading, caption, draw) in drawn.items()
    }


def _draw_saliency(run: Run, pictures: dict[str, dict], *, theme: str) -> Any:
    classes = run.recorded["dataset"]["class_names"]
    first, *_ = pictures.values()
    return report.figure_side_by_side(
        first["image"],
        {name: picture["maps"] for name, picture in pictures.items()},
        labels=[classes[label] for label in first["label"]],
        predictions={name: [classes[p] for p in picture["prediction"]] for name, picture in pictures.items()},
        correct={name: picture["prediction"] == picture["label"] for name, picture in pictures.items()},
        objects=first.get("object"),
        theme=theme,
    )


if __name__ == "__main__":
    app.run(main)
