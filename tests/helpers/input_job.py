"""A program that reads batches with worker processes until it is told to end, for the tests of killed processes.

python tests/helpers/input_job.py FOLDER [silent]

It prints "ready" after the first batches and waits for a line on its standard input; then it reads ten batches more and
prints "served". With "silent", the images of later batches never answer; it prints "waiting", and ends at SIGTERM.
"""

import os
import signal
import sys
import time

import numpy as np

from sdecor.data.loader import create_loader

COUNT, BATCH = 400, 4


class Source:
    """Noise; with `silent`, examples from the third batch on are read from a file that never answers."""

    labels = np.zeros(COUNT, np.int32)

    def __init__(self, silent: str | None = None):
        self.silent = silent

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict:
        if self.silent and index != 0:
            open(self.silent).read()
        return {"image": np.random.default_rng(index).integers(0, 256, (64, 64, 3), np.uint8), "label": np.int32(0)}

    def name(self, index: int) -> str:
        return f"noise {index}"


def main(folder: str, silent: str = "") -> None:
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(time.monotonic()))

    def check():
        if asked:
            raise SystemExit("stopped")

    source = Source(os.path.join(folder, "silent") if silent else None)
    loader = create_loader(source, batch_size=BATCH, seed=0, kind="grain", num_workers=2, check=check)
    batches = loader.iterate()
    if silent:
        print("waiting", flush=True)
        next(batches)
    for _ in range(3):
        next(batches)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(10):
        next(batches)
    print("served", flush=True)
    batches.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
