"""Checkerboards of trained runs with several periods: places of a grid that a network reads (docs/evidence/setting.md).

    python -m studies.lattice --cell=runs/test_photographs20/ce --split=val --out=lattice.csv

For each run `seed…` of the cell: the mean `checkerboard` of its gradient maps, on images of a split, for each of
`PERIODS`. An evaluation has period 2 alone, which does not see a network that reads every second block.
"""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from sdecor import metrics
from sdecor.attribution import explain, reduce
from sdecor.data import evaluation_batches
from sdecor.evaluation import programs, runs
from studies import trained

IMAGES = 500
PERIODS = (2, 4, 8)


def rows(folder: pathlib.Path, split: str) -> Iterator[trained.Row]:
    """Yield (cell, measure, value) of a run."""
    run = trained.restore(folder, split)
    source = runs.source_of(run)
    (batch,) = evaluation_batches(source, batch_size=min(IMAGES, len(source)), limit=IMAGES)
    maps = _maps(run.apply, run.variables, jnp.asarray(programs.images_of(runs.setup_of(run), batch)))
    for period in PERIODS:
        found = metrics.checkerboard(maps, period=period).mean()
        yield folder.parent.name, f"gradient/checkerboard_{period}", float(found)


@jax.jit(static_argnames="apply")
def _maps(apply: runs.Network, variables: dict, images: jax.Array) -> jax.Array:
    network = lambda image: apply(variables, image[None])[0][0]  # noqa: E731
    return reduce(explain(network, images, "predicted", method="gradient"), how="abs_sum")


if __name__ == "__main__":
    trained.write_rows(__doc__, rows)
