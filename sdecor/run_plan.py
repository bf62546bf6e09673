"""From a trained run to its evaluation: what is evaluated, of which data, and what its numbers depend on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import sdecor
from sdecor import evaluation
from sdecor.core import parallel
from sdecor.data.batches import object_mask
from sdecor.evaluation import Plan, Setup, Subject, stored
from sdecor.runs import Run
from sdecor.training import run_folder

# On how many images measures are taken, by the field that says so, and what those measures need.
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
    """Return what is evaluated of a run, or of its stored `maps`, and a line for each thing of a preset that is not.

    Args:
      run: the network and the data.
      methods: as of `evaluation.choose_methods`.
      metrics: as of `evaluation.choose_metrics`.
      chunk_size: evaluations in flight on a device; None = what fits.
      maps: stored ones, which are measured instead of explaining.

    Raises:
      ValueError: when a method or metric that was named itself refuses the network or the data.
    """
    dataset, settings, source = run.dataset, run.settings, source_of(run)
    setup = Setup(
        run.apply,
        mean=tuple(dataset.mean),
        std=tuple(dataset.std),
        size=run.config.augment.size,
        chunk_size=chunk_size,
        **{field: settings[field] for field in ("target", "saliency_of", "reduction")},
    )
    example = source[0]
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


def source_of(run: Run) -> Any:
    """Return the examples of the split that is evaluated."""
    return run.dataset.source(run.settings["split"])


def options_of(run: Run) -> dict[str, dict[str, Any]]:
    """Return the options of measures that are the run's."""
    return {"replacement": {"steps": run.settings["curve_steps"]}}


def depends_of(run: Run) -> dict[str, Any]:
    """Return the settings that every number of a run depends on."""
    fields = ("split", "step", "parameters", "target", "seed", "data")
    return {field: run.settings[field] for field in fields} | {"sdecor": sdecor.__version__}


def subject_of(run: Run, plan: Plan) -> Subject:
    """Return what is evaluated, with the network on all devices."""
    variables, size = parallel.replicate(run.variables), run.config.evaluation.batch_size
    return Subject(plan.setup, variables, source_of(run), size, run.settings["seed"])


def provenance_of(run: Run) -> dict[str, Any]:
    """Return what exported maps come from: the run's config, checkpoint and data."""
    known, source = run.recorded["dataset"], source_of(run)
    return {
        "config": run_folder.lasting(run.recorded["config"]),
        "checkpoint": {name: run.settings[name] for name in ("step", "parameters")},
        "dataset": {
            **{name: known[name] for name in ("name", "class_names", "mean", "std")},
            **{"split": run.settings["split"], "size": len(source), "crop": run.config.augment.size},
        },
    }
