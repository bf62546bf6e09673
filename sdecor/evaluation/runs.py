"""Trained runs for an evaluation: restore them, name them, require equal settings, and plan their evaluation."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

import sdecor
from sdecor import evaluation
from sdecor.core import files, parallel, rng
from sdecor.core.checks import check_choice
from sdecor.data.batches import identity, object_mask
from sdecor.data.reading import first_readable
from sdecor.evaluation import Plan, Setup, Subject, stored
from sdecor.training import build, run_folder
from sdecor.training.checkpoint import Checkpoints, checksums

OF_ONE_RUN = ("step", "parameters", "temperature")  # settings that may differ between runs that are compared


@dataclasses.dataclass(frozen=True)
class Network:
    """A model in evaluation mode, `(variables, images) -> (logits, features)`; equal models compare equal."""

    model: Any

    def __call__(self, variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.model.apply(variables, images, train=False)


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, restored from its folder.

    Attributes:
      folder: folder of the run.
      name: name of the run in tables and figures.
      config: config of the run; `data` and `evaluation` have the values for this evaluation.
      recorded: content of config.json.
      dataset: the data set.
      apply: the network, `(variables, images) -> (logits, features)`.
      variables: parameters and statistics of the network.
      settings: settings that all numbers of the evaluation depend on.
    """

    folder: str
    name: str
    config: ConfigDict
    recorded: dict[str, Any]
    dataset: Any
    apply: Any
    variables: Any
    settings: dict[str, Any]


def restore(
    folder: str,
    *,
    name: str | None = None,
    checkpoint: str = "best",
    split: str = "test",
    target: str = "predicted",
    data: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Run:
    """Read a run's config, data set and checkpoint.

    Args:
      folder: folder of the run.
      name: name of the run in tables and figures; None for its training method.
      checkpoint: "best" (by validation accuracy), "latest", or a step.
      split: split to evaluate on.
      target: class whose score is explained, "predicted" or "label".
      data: new values of `config.data`; None keeps a field.
      evaluation: new values of `config.evaluation`; None keeps a field.

    Raises:
      ValueError: if there is no run, or the checkpoint is missing or damaged.
    """
    files.check_text("--workdir", folder)
    recorded = run_folder.read(folder)
    config, known = ConfigDict(recorded["config"]), recorded["dataset"]
    for group, changes in (("data", data), ("evaluation", evaluation)):
        config[group].update({name: value for name, value in (changes or {}).items() if value is not None})
    config.data.update({"mean": known["mean"], "std": known["std"]})
    dataset = build.create_data(config)
    image_shape = build.image_size(config, tuple(known["image_shape"]))
    model = build.create_model(config, known["num_classes"], image_shape, tapped=False)
    state = build.state_shapes(config, model, image_shape, rng.run_key(config.seed, 0))  # no value is needed
    with Checkpoints(folder, create=False) as checkpoints:
        restored = checkpoints.restore(state, _step(checkpoints, checkpoint))
    if restored is None:
        raise ValueError(f"{folder} has no checkpoint yet: train it with train.py first")
    state, _ = restored
    name = name or run_folder.title(recorded["config"])
    settings = _settings(config, dataset, state, split=split, target=target)
    model, variables = build.without_whitening(model, state.variables)
    return Run(folder, name, config, recorded, dataset, Network(model), variables, settings)


def _settings(config: ConfigDict, dataset: Any, state: Any, *, split: str, target: str) -> dict[str, Any]:
    """Return the settings that all numbers of an evaluation depend on, as plain values."""
    options = config.evaluation
    of_data = {"mean": dataset.mean, "std": dataset.std, "crop": config.augment.size}
    settings = {
        "split": split,
        "step": int(state.step),
        "parameters": checksums(state.variables),
        "target": target,
        "data": {**identity(dataset.source(split)), **of_data},
        "seed": 0,
        "saliency_of": options.saliency_of,
        "reduction": "abs_sum",
        "curve_steps": options.curve_steps,
        "map_images": options.get("map_images"),  # configs of earlier versions lack some of these fields
        "curve_images": options.curve_images,
        "robustness_images": options.get("robustness_images", 100),
        "resamples": options.resamples,
    }
    return files.plain(settings)


def _step(checkpoints: Checkpoints, wanted: str) -> int | None:
    if wanted == "latest":
        return None
    if wanted == "best":
        return checkpoints.best_step()
    if not wanted.isdigit():
        check_choice("--checkpoint", wanted, ("best", "latest", *map(str, checkpoints.steps())))
    return int(wanted)


def check_comparable(runs: Sequence[Run]) -> None:
    """Raise ValueError, with the differing fields, unless all runs have the same evaluation on the same images."""

    def measured(run: Run) -> dict[str, Any]:
        data = {name: run.recorded["dataset"][name] for name in ("name", "class_names", "image_shape")}
        settings = {name: value for name, value in run.settings.items() if name not in OF_ONE_RUN}
        chosen = {name: run.recorded["config"]["data"][name] for name in ("canvas", "canvas_fit", "channels", "limit")}
        return {"dataset": data, "settings": settings, "data": chosen}

    reference, *others = runs
    for other in others:
        differences = files.differing_fields(measured(reference), measured(other))
        if differences:
            listed = "\n".join(f"  {field}: {a!r} and {b!r}" for field, (a, b) in differences.items())
            raise ValueError(
                f"{reference.folder} and {other.folder} cannot be compared, since these fields differ:\n{listed}\n"
                "Compare runs of the same data and the same evaluation, or evaluate them one by one."
            )


def run_names(folders: Sequence[str]) -> list[str]:
    """Return unique names of runs: their training methods and forms, else the names or the paths of their folders.

    Raises:
      ValueError: if a folder is given twice.
    """
    files = [str(epath.Path(folder)) for folder in folders]
    twice = [path for path in files if files.count(path) > 1]
    if twice:
        raise ValueError(f"--workdir={twice[0]} is given twice: a run is compared with other runs")
    for names in (
        [run_folder.title(run_folder.read(folder)["config"]) for folder in folders],
        [epath.Path(folder).name for folder in folders],
    ):
        if len(set(names)) == len(names):
            return names
    return files


# Config field with a number of images → the `Group.needs` of the metrics that use so many images.
IMAGES = {
    "map_images": ("maps", "object"),
    "curve_images": ("network", "attributions"),
    "robustness_images": ("explanation", "parameters", "set", "mosaic"),
}


def plan_of(
    run: Run,
    methods: Mapping[str, Any],
    metrics: Mapping[str, bool],
    *,
    chunk_size: int | None = None,
    maps: stored.Maps | None = None,
) -> tuple[Plan, list[str]]:
    """Return the plan of a run's evaluation, and one line for each method or metric of a preset that is left out.

    Args:
      run: the network and the data.
      methods: result of `evaluation.choose_methods`.
      metrics: result of `evaluation.choose_metrics`.
      chunk_size: number of network evaluations at once on a device; None for as many as fit in memory.
      maps: stored maps to measure instead of explaining.

    Raises:
      ValueError: if a method or metric that was named itself does not support the network or the data.
    """
    settings, source, setup = run.settings, source_of(run), setup_of(run, chunk_size=chunk_size)
    example = first_readable(source)
    batch = {"image": example["image"], "label": np.int32(0), "index": np.int32(0), "weight": np.float32(1)}
    mask = object_mask(example)
    batch |= {} if mask is None else {"object": mask}
    batch = {field: np.asarray(value)[None] for field, value in batch.items()}
    counts = {field: min(settings[field] or len(source), len(source)) for field in IMAGES}
    plan, notes = evaluation.make_plan(
        setup,
        methods,
        metrics,
        variables=run.variables,
        batch=batch,
        images={needs: counts[field] for field, all_needs in IMAGES.items() for needs in all_needs},
        options=options_of(run),
    )
    if maps is not None:
        plan, missing = stored.restrict(plan, metrics, maps.reduction)
        notes += missing
    return plan, notes


def setup_of(run: Run, *, chunk_size: int | None = None) -> Setup:
    """Return the network of a run, its input and the score that is explained; for `chunk_size` see `plan_of`."""
    return Setup(
        run.apply,
        mean=tuple(run.dataset.mean),
        std=tuple(run.dataset.std),
        size=run.config.augment.size,
        chunk_size=chunk_size,
        **{field: run.settings[field] for field in ("target", "saliency_of", "reduction")},
    )


def source_of(run: Run) -> Any:
    """Return the examples of the evaluated split."""
    return run.dataset.source(run.settings["split"])


def options_of(run: Run) -> dict[str, dict[str, Any]]:
    """Return the options of groups that the run's config sets."""
    return {"replacement": {"steps": run.settings["curve_steps"]}}


def depends_of(run: Run) -> dict[str, Any]:
    """Return the settings that every number of a run depends on; for stored maps, their digest is one."""
    fields = ("split", "step", "parameters", "target", "seed", "data")
    chosen = {"temperature": run.settings["temperature"]} if "temperature" in run.settings else {}
    maps = {"export": run.settings["from_export"]["sha256"]} if "from_export" in run.settings else {}
    return {field: run.settings[field] for field in fields} | {"sdecor": sdecor.__version__} | chosen | maps


def subject_of(run: Run, setup: Setup, *, split: str | None = None) -> Subject:
    """Return the run's network, on all devices, and the examples of a split; None for the evaluated one."""
    variables, source = parallel.replicate(run.variables), run.dataset.source(split or run.settings["split"])
    return Subject(setup, variables, source, run.config.evaluation.batch_size, run.settings["seed"])


def provenance_of(run: Run) -> dict[str, Any]:
    """Return the origin of exported maps: the run's config, checkpoint and data."""
    known, source = run.recorded["dataset"], source_of(run)
    return {
        "config": run_folder.lasting(run.recorded["config"]),
        "checkpoint": {name: run.settings[name] for name in ("step", "parameters")},
        "dataset": {
            **{name: known[name] for name in ("name", "class_names", "mean", "std")},
            **{"split": run.settings["split"], "size": len(source), "crop": run.config.augment.size},
        },
    }
