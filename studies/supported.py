"""Try every attribution method on every kind of network, and write the table of docs/networks.md.

    python -m studies.supported            the whole table, with all checks: about half an hour on two CPU cores
    python -m studies.supported --trace    traced only, nothing computed: minutes

The numbers of a pair are checked where it works: shape and finiteness, equality with the kind's twin, and the
completeness that the method promises. A pair that fails a check is an error, not an entry of the table.
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
COMPLETE = 0.05  # largest completeness error, as a share of the largest score; the paths have 50 steps


class Trial(NamedTuple):
    """A method tried on a kind of network.

    Attributes:
      refusal: first sentence of the error; "" if the method works.
      problem: what is wrong with its result; "" if nothing is.
    """

    refusal: str = ""
    problem: str = ""


def image() -> jax.Array:
    """Return the image that is explained."""
    return jnp.asarray(np.random.default_rng(3).normal(size=SHAPE), jnp.float32)


def explained(fn: Fn, method: str, *, trace: bool = False, jit: bool = True) -> Any:
    """Return the attribution `[H, W, C]` and the completeness error, or 0 without one; or their shapes."""
    info = METHOD_INFO[method]
    known = inspect.signature(info.function).parameters
    options = {name: value for name, value in CHEAP.items() if name in known}
    options |= {"with_error": True} if info.with_error else {}

    def one(image: jax.Array) -> Any:
        found = explain(fn, image[None], TARGET, method=method, key=jax.random.key(0), **options)
        values, error = found if info.with_error else (found, jnp.zeros(1))
        return values[0], error[0]

    if trace:
        return jax.eval_shape(one, image())
    return jax.device_get(jax.jit(one)(image())) if jit else one(image())


def tried(kind: Kind, method: str, *, trace: bool = False) -> Trial:
    """Try a method on a kind of network."""
    fn = kind.build()
    try:
        values, error = explained(fn, method, trace=trace)
    except Exception as refusal:  # any error is a refusal, and the table says which one
        return Trial(refusal=first_sentence(refusal))
    if values.shape[:2] != SHAPE[:2] or values.shape[2] not in (1, SHAPE[2]):
        return Trial(problem=f"shape {values.shape}")
    return Trial() if trace else Trial(problem=problem_of(kind, fn, method, values, error))


def problem_of(kind: Kind, fn: Fn, method: str, values: np.ndarray, error: np.ndarray) -> str:
    """Return what is wrong with the attribution of a pair; "" if nothing is."""
    if not np.isfinite(values).all():
        return "not finite"
    scores = [float(fn(each)[TARGET]) for each in (image(), jnp.zeros(SHAPE))]
    if METHOD_INFO[method].sums_to == ABOVE_BASELINE and abs(error) > COMPLETE * max(map(abs, scores)):
        return f"completeness error {float(error):.3g} of scores {scores}"
    if kind.twin is not None:
        expected = of_twin(kind.twin, method)
        gap, largest = np.abs(values - expected).max(), np.abs(expected).max()
        if gap > kind.tolerance * largest:
            return f"differs from its twin by {gap / largest:.2g} of the largest value"
    return ""


@functools.cache
def of_twin(twin: Callable[[], Fn], method: str) -> np.ndarray:
    """Return the attribution of the network written plainly."""
    return explained(twin(), method)[0]


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
