"""Try every attribution method on every kind of network, and write the table of docs/networks.md.

    python -m studies.supported            the whole table, with all checks: 15 minutes of a CPU core
    python -m studies.supported --trace    traced only, nothing computed

The numbers of a pair are checked where it works: shape, finiteness, that the maps are not 0, that an image's map does
not depend on the rest of its batch, equality with the kind's twin, and the completeness that the method promises. A
pair that fails a check is an error, not an entry of the table.
"""

import argparse
import functools
import inspect
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution import METHOD_INFO, explain
from sdecor.attribution.methods import ABOVE_BASELINE
from studies.kinds import KINDS, SHAPE, Fn, Kind

DOCUMENT = pathlib.Path(__file__).parents[1] / "docs/networks.md"
START, END = "<!-- made by studies/supported.py -->", "<!-- end -->"
TARGET = 0
# Few draws and few regions are enough to see whether a method works.
CHEAP = {"samples": 8, "regions": np.arange(64).reshape(8, 8) // 32 * 2 + np.arange(64).reshape(8, 8) % 8 // 4}
EXACT = ("deeplift", "shapley_sampling", "kernel_shap")  # sum to the rise of the score; paths do with more steps
OTHER_BASELINE = ("blur_integrated_gradients",)  # than zero
ZERO = jnp.zeros((1, *SHAPE))
QUICKLY = {"xla_backend_optimization_level": 1}  # most of the time is compilation; at 0 DeepLIFT of a CNN is wrong
COMPLETE = 0.05  # largest difference of sums, as a share of the largest score; of bfloat16


class Trial(NamedTuple):
    """A method tried on a kind of network.

    Attributes:
      refusal: first sentence of the error; "" if the method works.
      problem: what is wrong with its result; "" if nothing is.
    """

    refusal: str = ""
    problem: str = ""


def images() -> jax.Array:
    """Return the batch that is explained, `[2, H, W, C]`."""
    return jnp.asarray(np.random.default_rng(3).normal(size=(2, *SHAPE)), jnp.float32)


def explainer(fn: Fn, method: str, **more: Any) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Return a function from images to their attributions `[N, H, W, C]` and completeness errors `[N]`, 0 without."""
    info = METHOD_INFO[method]
    known = inspect.signature(info.function).parameters
    options = {name: value for name, value in CHEAP.items() if name in known}
    options |= more | ({"with_error": True} if info.with_error else {})

    def explained(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = explain(fn, images, TARGET, method=method, key=jax.random.key(0), **options)
        return found if info.with_error else (found, jnp.zeros(len(images)))

    return explained


def computed(fn: Fn, method: str, *batches: jax.Array, **more: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the attributions and completeness errors of batches of one size, compiled once."""
    compiled = jax.jit(explainer(fn, method, **more), compiler_options=QUICKLY)
    return [jax.device_get(compiled(batch)) for batch in batches]


def tried(kind: Kind, method: str, *, trace: bool = False) -> Trial:
    """Try a method on a kind of network."""
    fn, batch = kind.build(), images()
    try:
        if trace:
            values, _ = jax.eval_shape(explainer(fn, method), batch)
        else:
            (values, error), (other, _) = computed(fn, method, batch, batch.at[1].multiply(-2))
    except Exception as refusal:  # any error is a refusal, and the table says which one
        return Trial(refusal=first_sentence(refusal))
    if values.shape[:3] != (2, *SHAPE[:2]) or values.shape[3] not in (1, SHAPE[2]):
        return Trial(problem=f"shape {values.shape}")
    return Trial() if trace else Trial(problem=problem_of(kind, fn, method, values, error, other))


def problem_of(
    kind: Kind, fn: Fn, method: str, values: np.ndarray, error: np.ndarray, other: np.ndarray | None = None
) -> str:
    """Return what is wrong with the attributions of a pair; "" if nothing is.

    `other` are the attributions of a batch that has the same first image.
    """
    if not np.isfinite(values).all():
        return "not finite"
    # A CAM is 0 where no weighted sum of features is positive.
    cam = "relu" in inspect.signature(METHOD_INFO[method].function).parameters
    if not values.any() and not (cam and computed(fn, method, images(), relu=False)[0][0].any()):
        return "all values are 0"
    if other is not None and gap(values[0], other[0]) > 1e-5:
        return f"depends on the other image by {gap(values[0], other[0]):.2g} of the largest value"
    info = METHOD_INFO[method]
    if info.with_error and info.sums_to == ABOVE_BASELINE:
        here, zero = (np.asarray([fn(each)[TARGET] for each in batch], np.float32) for batch in (images(), ZERO))
        largest = COMPLETE * max(np.abs(here).max(), np.abs(zero).max())
        if method in EXACT and np.abs(error).max() > largest:
            return f"completeness errors {error} of scores {here} above {zero}"
        sums = values.sum((1, 2, 3)) - (here - zero)
        if method not in OTHER_BASELINE and np.abs(sums - error).max() > largest:
            return f"reports completeness errors {error}, but has {sums}"
    if kind.twin is not None and (apart := gap(values, of_twin(kind.twin, method))) > kind.tolerance:
        return f"differs from its twin by {apart:.2g} of the largest value"
    return ""


def gap(values: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, as a share of the largest expected value."""
    return float(np.abs(values - expected).max() / max(np.abs(expected).max(), 1e-30))


@functools.cache
def of_twin(twin: Callable[[], Fn], method: str) -> np.ndarray:
    """Return the attributions of the network written plainly."""
    return computed(twin(), method, images())[0][0]


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an error's message, without what differs from run to run."""
    named = isinstance(error, ValueError | NotImplementedError)
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    text = re.split(r"(?<=[a-z\])])[.:;] ", text)[0].rstrip(".:;")
    text = re.sub(r" ?\(https?:\S*\)|0x[0-9a-f]+|/\S*/", "", text)
    return text if named else f"{type(error).__name__}: {text}"


def table(trials: dict[str, dict[str, Trial]]) -> str:
    """Return the table in Markdown: kind → method → trial."""
    lines = ["| network | methods that work | methods that do not, and why |", "| --- | --- | --- |"]
    for name, row in trials.items():
        reasons: dict[str, list[str]] = {}
        for method, trial in row.items():
            if trial.refusal:
                reasons.setdefault(trial.refusal, []).append(f"`{method}`")
        works = sum(not trial.refusal for trial in row.values())
        count = f"all {works}" if works == len(row) else f"{works} of {len(row)}"
        named = {reason: ", ".join(each) if len(each) < len(row) else "all" for reason, each in reasons.items()}
        why = "<br>".join(f"{methods}: {cell(reason)}" for reason, methods in named.items())
        lines.append(f"| {KINDS[name].title} | {count} | {why} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Return a text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def main() -> None:
    """Try all pairs and write the table between its marks in docs/networks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", action="store_true", help="trace only")
    trace = parser.parse_args().trace
    trials = {}
    for name, kind in KINDS.items():
        trials[name] = {method: tried(kind, method, trace=trace) for method in METHOD_INFO}
        problems = {method: trial.problem for method, trial in trials[name].items() if trial.problem}
        print(name, sum(not trial.refusal for trial in trials[name].values()), problems or "", flush=True)
    wrong = {name: {m: t.problem for m, t in row.items() if t.problem} for name, row in trials.items()}
    if wrong := {name: row for name, row in wrong.items() if row}:
        raise SystemExit(f"these pairs are wrong: {wrong}")
    before, _, rest = DOCUMENT.read_text().partition(START)
    DOCUMENT.write_text(f"{before}{START}\n\n{table(trials)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
