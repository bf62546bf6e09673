"""What was found of trained runs, for readers: evaluation.json, the pictures, the page and its comparison."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from sdecor import report, summary
from sdecor.attribution import reduce
from sdecor.core import files
from sdecor.data import center_crop
from sdecor.data.batches import object_mask
from sdecor.evaluation import Plan, Results, Store
from sdecor.run_plan import source_of
from sdecor.runs import Run
from sdecor.training import logbook


def summary_of(
    run: Run, plan: Plan, results: Results, output: epath.Path | None = None, store: Store | None = None
) -> dict[str, dict]:
    """Summarise a run's results and write them to evaluation.json, in its folder or in `output`."""
    numbers = summary.summarise(results, n_resamples=run.settings["resamples"])
    others = {} if store is None else store.other_versions(plan.all_parts())
    content = {
        "settings": run.settings | plan.settings(),
        "examples": int(results.examples["index"].size),
        "metrics": numbers,
        "versions": files.versions(),
        **({"other_versions": others} if others else {}),  # of what was evaluated with those
    }
    files.write_json((output or epath.Path(run.folder)) / "evaluation.json", content)
    return numbers


def pictures_of(
    run: Run, plan: Plan, shown: Results, results: Results, methods: Iterable[str] | None = None
) -> dict[str, Any]:
    """Return some images with their predictions and maps, as the gallery shows them: see `report.run_report`.

    Args:
      run: of the network and the data.
      plan: what is evaluated.
      shown: the images' `index` and, under the methods' keys, their attributions `[images, H, W, C]`.
      results: of all examples.
      methods: the keys of those to be shown; default: all of the plan.
    """
    source, size = source_of(run), run.config.augment.size
    index, examples = shown.examples["index"], results.examples
    chosen = [source[int(i)] for i in index]
    place = np.searchsorted(examples["index"], index)
    pictures = {name: examples[name][place] for name in ("label", "prediction", "confidence")}
    pictures["image"] = center_crop(np.stack([example["image"] for example in chosen]), size)
    masks = [object_mask(example) for example in chosen]
    if masks[0] is not None:
        pictures["object"] = center_crop(np.stack(masks), size) == 1
    attributions = {key: shown.examples[key] for key in (plan.explained() if methods is None else methods)}
    signed = {key: np.asarray(reduce(values, how="sum")) for key, values in attributions.items()}
    how = "abs_sum" if plan.setup.reduction == "sum" else plan.setup.reduction  # maps to be shown have no signs
    return pictures | {
        "maps": {key: np.asarray(reduce(x, how=how)) for key, x in attributions.items()},
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
    settings = {name: value for name, value in first.settings.items() if name not in ("parameters", "step", "data")}
    facts = {"data set": data["name"], **settings, **plans[reference].settings(), "versions": files.versions()}
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
        files.write_json(output / "comparison.json", {"reference": reference, "differences": comparisons})
    return comparisons
