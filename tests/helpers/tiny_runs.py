"""Tiny training runs on an image folder drawn by the tests."""

import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
TINY = {
    "data.name": "folder",
    "data.canvas": 8,
    "data.val_fraction": 0.25,
    "augment.flip": True,
    "augment.crop_padding": 1,
    "model.widths": (6,),
    "optim.warmup_epochs": 0.0,
    "train.batch_size": 8,
    "train.epochs": 4.0,
    "train.checkpoint_every_steps": 2,
    "evaluation.batch_size": 16,
    "evaluation.curve_steps": 3,
    "evaluation.resamples": 50,
    "log.every_steps": 1,
    "log.progress": False,
}


def draw_images(root: pathlib.Path, *, classes: int = 2, train: int = 16, test: int = 9) -> pathlib.Path:
    """Write `root/{train,test}/<class>/*.png`: noise whose brightness tells the class, so that it can be learned."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (8, 8, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


def tiny_config(images: pathlib.Path, method: str = "sdecor", **changes):
    from configs import default

    config = default.get_config(f"method={method}")
    with config.ignore_type():
        config.update_from_flattened_dict(TINY | {"data.path": str(images)} | changes)
    return config


def rows_without_times(folder: pathlib.Path) -> list[dict]:
    """Return the rows of a run's log without what depends on the clock, in which no two runs agree."""
    from sdecor.training import clock, logbook

    rows = [row for row in logbook.read_rows(folder) if row["split"] != clock.SPLIT]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send Ctrl-C to this process during a training step."""
    from sdecor.training import profiling

    take = profiling.Profiler.take

    def taken(self: profiling.Profiler, steps: range, *arguments: Any) -> Any:
        if step in steps:
            os.kill(os.getpid(), signal.SIGINT)
        return take(self, steps, *arguments)

    monkeypatch.setattr(profiling.Profiler, "take", taken)


def command(images: pathlib.Path, workdir: pathlib.Path, *extra: str, method: str = "sdecor") -> list[str]:
    """Return the command line of the run of `tiny_config`."""
    fields = TINY | {"data.path": str(images)}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    config = f"--config={ROOT}/configs/default.py:method={method}"
    return [sys.executable, str(ROOT / "train.py"), config, f"--workdir={workdir}", *flags, *extra]


def start(arguments: list[str], env: dict[str, str] | None = None, folder: pathlib.Path = ROOT) -> subprocess.Popen:
    return subprocess.Popen(arguments, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
