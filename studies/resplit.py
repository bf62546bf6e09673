"""Write the Tiny ImageNet directories of docs/evidence/scarce.md: test images on which no earlier study decided.

    python -m studies.resplit --path=tiny-imagenet-200 --out=fresh
    python -m studies.resplit --path=tiny-imagenet-200 --out=fresh2 --draw=2
    python -m studies.resplit --path=tiny-imagenet-200 --out=fresh3 --draw=3

`--out` gets the data set's own layout, with links to the images of `--path`. Its val, which is our test split, holds
images of the original train, the same number of each class. None of them was a validation or test image of the earlier
studies, nor of an earlier draw. Its train holds the other images of train. The original val is left out.
"""

import argparse
import pathlib

import numpy as np

from configs.sweeps import scarce
from sdecor.data import splits

EARLIER = ((0.1, 0), (0.1, 1))  # (fraction, split_seed) that earlier studies carved from train
DRAWS = {1: (2, 2000), 2: (3, 2000), 3: (4, 1800)}  # draw → seed, test images


def choose(labels: np.ndarray, *, draw: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices `(train, test)` of labels int `[N]`, by label as `splits.carve` sees them."""
    decided = [splits.carve(labels, fraction=fraction, seed=seed)[1] for fraction, seed in EARLIER]
    for earlier in range(1, draw):
        train, test = choose(labels, draw=earlier)
        decided += [test, train[splits.carve(labels[train], fraction=scarce.VALIDATION, seed=0)[1]]]
    unseen = np.setdiff1d(np.arange(len(labels)), np.concatenate(decided))
    seed, count = DRAWS[draw]
    test = unseen[splits.pick(labels[unseen], count, seed=seed)]
    return np.setdiff1d(np.arange(len(labels)), test), test


def write(path: pathlib.Path, out: pathlib.Path, *, draw: int = 1) -> None:
    """Write the directory `out` from the Tiny ImageNet directory `path`."""
    wnids = (path / "wnids.txt").read_text().split()
    boxes = {wnid: _boxes(path / "train" / wnid / f"{wnid}_boxes.txt") for wnid in wnids}
    # The order of the loader, class by class, on which the earlier studies' choices depend.
    images = [(wnid, name) for wnid in wnids for name in sorted(boxes[wnid])]
    labels = np.array([wnids.index(wnid) for wnid, _ in images])
    train, test = choose(labels, draw=draw)
    for wnid in wnids:
        folder = out / "train" / wnid / "images"
        folder.mkdir(parents=True)
        kept = [name for of, name in (images[i] for i in train) if of == wnid]
        for name in kept:
            (folder / name).symlink_to((path / "train" / wnid / "images" / name).resolve())
        rows = "".join(f"{name}\t{boxes[wnid][name]}\n" for name in kept)
        (out / "train" / wnid / f"{wnid}_boxes.txt").write_text(rows)
    (out / "val" / "images").mkdir(parents=True)
    rows = []
    for wnid, name in (images[i] for i in test):
        (out / "val" / "images" / name).symlink_to((path / "train" / wnid / "images" / name).resolve())
        rows.append(f"{name}\t{wnid}\t{boxes[wnid][name]}\n")
    (out / "val" / "val_annotations.txt").write_text("".join(rows))
    for name in ("wnids.txt", "words.txt"):
        (out / name).write_text((path / name).read_text())


def _boxes(file: pathlib.Path) -> dict[str, str]:
    return dict(line.split("\t", 1) for line in file.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=pathlib.Path, required=True, help="Tiny ImageNet, or some of its classes")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory to write")
    parser.add_argument("--draw", type=int, choices=sorted(DRAWS), default=1, help="which choice of test images")
    args = parser.parse_args()
    write(args.path, args.out, draw=args.draw)


if __name__ == "__main__":
    main()
