"""Study whether correlated features spread input gradients, and which penalty on the correlation sharpens them.

    python -m studies.correlated_features --out=DIR [--seeds=8]

Writes ridge.csv (fixed detectors, against their closed form), networks.csv (learned features, a row for each network),
the summary networks.md, and the figures of docs/theory.md. Takes about ten minutes on two cores. Needs no data.
"""

import argparse
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core.files import csv_text, write_file
from sdecor.evaluation.statistics import mean_interval, paired_test
from sdecor.metrics import energy_inside, gini
from studies import figures
from studies.network import LAYERS, Params, Recipe, cosines, densities, forward, input_gradient, train
from studies.patches import CLASSES, Examples, groups, parts
from studies.redundancy import noise_of, participation, ridge_weights, whitened_ridge_weights

RATIOS = np.geomspace(0.25, 4, 8)  # ratios of the detectors' noise variances
CORRELATIONS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)
RIDGES = (0.0, 0.03, 0.3, 3.0)
WEIGHTS = (1.0, 3.0, 10.0)
DECAY = 1e-3
TRAIN, TEST = 384, 1000
SHORT, LONG = 400, 2500  # steps; the long ones are near convergence
FORMS = (
    ("covariance", "pooled"),
    ("correlation", "pooled"),
    ("within", "pooled"),
    ("correlation", "before"),
    ("correlation", "after"),
    ("cosine", "pooled"),
    ("cosine", "after"),
    ("density", "after"),
)
WITH_MASKING = (("covariance", "pooled"), ("correlation", "pooled"), ("density", "after"))
MEASURES = ("accuracy", "gini", "energy", "correlation", "cosine", "density", "active", "dead")
COMPARED = ("accuracy", "gini", "energy")
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the results")
    parser.add_argument("--seeds", type=int, default=8, help="draws of the data and of the networks")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"--seeds={options.seeds}: 2 or more, or there are no intervals")
    options.out.mkdir(parents=True, exist_ok=True)

    ridge = list(fixed_detectors(range(options.seeds)))
    write(options.out / "ridge.csv", ridge)
    networks = []
    for data, recipe, weight in cells():
        rows = list(trained(data, recipe, weight, range(options.seeds)))
        networks += rows
        print(cell_name(rows[0]), *(f"{name} {np.nanmean([row[name] for row in rows]):.3f}" for name in MEASURES))
    write(options.out / "networks.csv", networks)
    (options.out / "networks.md").write_text(table(networks))
    figures.draw_ridge(ridge, networks, options.out / "theory_ridge.png")
    figures.draw_layers(networks, options.out / "theory_layers.png")


def fixed_detectors(seeds: Sequence[int], *, count: int = 2000) -> Iterator[Row]:
    """Fit ridge regressions of a concept on redundant detectors; `predicted` is the spread by the closed form."""
    for correlation in CORRELATIONS:
        noise = noise_of(correlation, RATIOS)
        for white in (False, True):
            for ridge in RIDGES:
                predicted = participation((whitened_ridge_weights if white else ridge_weights)(noise, ridge))
                for seed in seeds:
                    spread = participation(_fit(noise, ridge, seed, count, white=white))
                    yield {
                        "correlation": correlation,
                        "white": white,
                        "ridge": ridge,
                        "seed": seed,
                        "spread": float(spread),
                        "predicted": float(predicted),
                    }


def _fit(noise: np.ndarray, ridge: float, seed: int, count: int, *, white: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    concept = rng.normal(size=count)
    detectors = concept[:, None] + np.sqrt(noise) * rng.normal(size=(count, len(noise)))
    change = np.eye(len(noise))
    if white:
        values, axes = np.linalg.eigh(detectors.T @ detectors / count)
        change = axes / np.sqrt(values) @ axes.T
    features = detectors @ change
    gram = features.T @ features / count + ridge * np.eye(len(noise))
    return change @ np.linalg.solve(gram, features.T @ concept / count)


def cells() -> Iterator[tuple[Callable[..., Examples], Recipe, float]]:
    """Yield the data, recipe and penalty weight of every kind of network to train."""
    for consistency in (False, True):
        yield groups, Recipe(relu=False, steps=LONG, consistency=consistency), 0.0
    for penalty in ("covariance", "correlation", "whitening"):
        for weight in (1.0, 10.0, 100.0):
            yield groups, Recipe(relu=False, steps=LONG, penalty=penalty), weight
    for steps in (SHORT, LONG):
        for consistency in (False, True):
            yield parts, Recipe(steps=steps, consistency=consistency), 0.0
        yield parts, Recipe(steps=steps, width=CLASSES), 0.0
        for penalty, layer in FORMS:
            for weight in WEIGHTS:
                yield parts, Recipe(steps=steps, penalty=penalty, layer=layer), weight
    for penalty, layer in WITH_MASKING:
        for weight in WEIGHTS:
            yield parts, Recipe(steps=SHORT, penalty=penalty, layer=layer, consistency=True), weight


def trained(data: Callable[..., Examples], recipe: Recipe, weight: float, seeds: Sequence[int]) -> Iterator[Row]:
    """Train a network for each seed, and yield its metrics on new examples of the same kind."""
    drawn = [draw(data, seed, TRAIN) for seed in seeds]
    images, labels = (jnp.stack([getattr(each, name) for each in drawn]) for name in ("images", "labels"))
    params = train(recipe, jax.vmap(jax.random.key)(jnp.asarray(seeds)), images, labels, weight, DECAY)
    for number, seed in enumerate(seeds):
        one = {name: value[number] for name, value in params.items()}
        tested = draw(data, seed + 1000, TEST)
        yield {
            "data": data.__name__,
            "steps": recipe.steps,
            "width": recipe.width,
            "penalty": recipe.penalty or "none",
            "layer": recipe.layer if recipe.penalty else "",
            "weight": weight,
            "consistency": recipe.consistency,
            "seed": seed,
            **measure(one, tested, relu=recipe.relu),
        }


draw = functools.cache(lambda data, seed, count: data(seed, count))


def measure(params: Params, examples: Examples, *, relu: bool) -> dict[str, float]:
    """Return accuracy, metrics of the gradient and metrics of the features.

    The gradient's are `gini`, `spread` (a share of the pixels) and `energy`. `correlation` is the root mean square over
    pairs of pooled features; `correlation_before` and `correlation_after` are those of features by positions. `cosine`,
    `density` and `active` (features per position) are of features after the non-linearity. `dead` counts constant ones.
    """
    width = params["bias"].size
    logits, features = forward(params, examples.images, relu=relu)
    maps = input_gradient(params, examples.images, examples.labels, relu=relu)
    magnitudes = np.abs(np.asarray(maps)).reshape(len(maps), -1)
    magnitudes = magnitudes[magnitudes.any(1)]
    samples = {name: np.asarray(features[name], np.float64).reshape(-1, width) for name in LAYERS}
    after = samples["after"]
    pairs = cosines(after)
    return {
        "accuracy": float((logits.argmax(-1) == examples.labels).mean()),
        "gini": float(jnp.nanmean(gini(maps))),
        "spread": float(participation(magnitudes).mean() / magnitudes.shape[1]) if len(magnitudes) else float("nan"),
        "energy": float(jnp.nanmean(energy_inside(jnp.abs(maps), jnp.asarray(examples.shown)))),
        "correlation": _rms_correlation(samples["pooled"]),
        "correlation_before": _rms_correlation(samples["before"]),
        "correlation_after": _rms_correlation(after),
        "cosine": float((pairs.sum() - jnp.trace(pairs)) / (width * (width - 1))),
        "density": float(densities(after).mean()),
        "active": float((after > 0).sum(1).mean()),
        "dead": float((after.std(0) <= 1e-4 * after.std(0).max()).sum()),
    }


def _rms_correlation(samples: np.ndarray) -> float:
    """Return the root mean square correlation over pairs of features that vary; 0 if fewer than two vary."""
    deviation = samples.std(0)
    alive = samples[:, deviation > 1e-4 * deviation.max()]
    if alive.shape[1] < 2:
        return 0.0
    pairs = np.corrcoef(alive.T)[np.triu_indices(alive.shape[1], 1)]
    return float(np.sqrt((pairs**2).mean()))


def cell_name(row: Row) -> str:
    """Return a network's name in the table."""
    name = f"{row['data']}, {row['steps']}: {'sgt' if row['consistency'] else 'ce'}"
    if row["width"] != Recipe.width:
        return f"{name} + width {row['width']}"
    return name if row["penalty"] == "none" else f"{name} + {row['penalty']}@{row['layer']} {row['weight']:g}"


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of means with 95 % intervals over seeds, and paired differences to no penalty."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(cell_name(row), []).append(row)
    header = ["network", "n", *MEASURES, *(f"Δ {key}" for key in COMPARED)]
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    for name, group in found.items():
        entries = [_entry(mean_interval([row[key] for row in group])) for key in MEASURES]
        plain = found[name.split(" + ")[0]]
        for key in COMPARED if group is not plain else ():
            values, reference = ({row["seed"]: row[key] for row in each} for each in (group, plain))
            entries.append(_entry(paired_test(values, reference)))
        entries += ["–"] * (len(header) - 2 - len(entries))
        lines.append(f"| {name} | {len(group)} | {' | '.join(entries)} |")
    return "\n".join(lines) + "\n"


def _entry(value: Any) -> str:
    return "–" if value.low is None else f"{value.mean:.3f} ± {value.high - value.mean:.3f}"


def write(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV, floats to six digits."""
    short = [[f"{value:.6g}" if isinstance(value, float) else value for value in row.values()] for row in rows]
    write_file(path, csv_text(list(rows[0]), short))


if __name__ == "__main__":
    main()
