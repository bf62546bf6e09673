"""FORGrad on trained runs: what a low pass gives to the gradient's maps for nothing (docs/evidence/scarce.md).

    python -m studies.forgrad --cell=runs/retest_photographs20/ce --out=forgrad.csv

For each run `seed…` of the cell, the cut-off of `low_passed` is chosen on validation images, by insertion minus
deletion. The gradient, and the gradient under this cut-off, are then measured on the test split. The file has a row for
each seed and value, as a sweep's results.csv.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from configs.sweeps import scarce
from sdecor import evaluation
from sdecor.attribution import gradient, low_passed
from studies import trained

CUTOFFS = (2, 4, 8, 12, 16, 24, 32)  # of 32 pixels; the last keeps everything
CHOOSING = 500  # validation images
NAME = "forgrad"


def methods(cutoffs: tuple[int, ...]) -> dict[str, tuple[evaluation.Method, bool]]:
    """Return the gradient under each cut-off, as `evaluation.choose_methods` gives methods."""
    chosen = {}
    for cutoff in cutoffs:
        key = f"{NAME}:cutoff={cutoff}"
        chosen[key] = (evaluation.Method(key, low_passed(gradient, float(cutoff))), True)
    return chosen


def choose(found: Mapping[str, Mapping[str, Any]], cutoffs: tuple[int, ...]) -> int:
    """Return the cut-off whose maps have the largest insertion minus deletion; the larger of two equally good ones."""

    def score(cutoff: int) -> float:
        insertion, deletion = (found[f"{NAME}:cutoff={cutoff}/{name}"]["mean"] for name in ("insertion", "deletion"))
        return insertion - deletion

    return max(cutoffs, key=lambda cutoff: (score(cutoff), cutoff))


def rows(folder: pathlib.Path, split: str) -> Iterator[trained.Row]:
    """Yield (cell, measure, value) of a run: its gradient, and its gradient under the chosen cut-off."""
    seen = trained.restore(folder, "val", curve_images=CHOOSING)
    cutoff = choose(trained.measure(seen, methods(CUTOFFS), ["insertion", "deletion"]), CUTOFFS)
    both = methods((cutoff,)) | evaluation.choose_methods(["gradient"])
    tested = trained.measure(trained.restore(folder, split, **scarce.COUNTS), both, scarce.TEST["metrics"])
    yield NAME, "cutoff", cutoff
    for key, each in tested.items():
        method, _, name = key.rpartition("/")
        if method == "gradient" or method.startswith(NAME):
            yield method.partition(":")[0], f"gradient/{name}", each["mean"]


if __name__ == "__main__":
    trained.write_rows(__doc__, rows)
