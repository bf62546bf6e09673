"""A run's folder: its config, versions and data set, in config.json."""

import json
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from sdecor.core import files
from sdecor.core.files import differing_fields, list_differences, plain, versions, write_json

FREE = (  # fields that may change between starts of a run: they change no parameter of the trained network
    "log.", "evaluation.", "data.workers", "data.loader", "data.memory_limit_mb", "data.data_dir", "data.path",
    "train.checkpoint_every_steps",
)  # fmt: skip

PAPERS_FORM = "covariance"


def claim(workdir: epath.PathLike, config: Any, dataset: dict[str, Any], *, write: bool = True) -> None:
    """Make `workdir` the folder of this run: check that it is of the same config, or write config.json.

    A folder in which no step was ever saved is free for another config.

    Args:
      workdir: local or remote folder, created where missing.
      config: the run's config.
      dataset: what is known of the data set: classes, sizes, mean, std.
      write: whether this process writes; all check.

    Raises:
      ValueError: when the folder holds another run; the message names each differing field. Fields in `FREE` may
        differ. Or when it cannot be made.
    """
    workdir = epath.Path(workdir)
    checkpoints = workdir / "checkpoints"
    started = checkpoints.exists() and any(path.name.isdigit() for path in checkpoints.iterdir())
    if started and (workdir / "config.json").exists():
        found = read(workdir)
        differences = {
            **differing_fields(found["config"], plain(config), ignore=FREE),
            **differing_fields(found["dataset"], plain(dataset), prefix="dataset."),
        }
        if differences:
            raise ValueError(
                f"{workdir} holds a run of another config:\n{list_differences(differences)}\n"
                "Use another --workdir, or the same config to continue that run."
            )
        changed = differing_fields(found["versions"], versions())
        if changed:
            logging.warning("other versions than the run began with:\n%s", list_differences(changed))
    if write:
        files.make_folder("--workdir", workdir)
        write_json(
            workdir / "config.json", {"config": plain(config), "dataset": plain(dataset), "versions": versions()}
        )


def title(config: Mapping[str, Any]) -> str:
    """Return the name of a run in tables: its training method, and its form where that is not the paper's.

    `config` is a run's, with "method" and "decorrelation": "sdecor", "sdecor (density)".
    """
    return config["method"] + form_suffix(config["decorrelation"]["form"], config["decorrelation"]["weight"])


def form_suffix(form: str | None, weight: float | None) -> str:
    """Return what a name says of the decorrelation, such as " (density)"; nothing of the paper's form, or of none."""
    return f" ({form})" if weight and form != PAPERS_FORM else ""


def read(workdir: epath.PathLike) -> dict[str, Any]:
    """Return config.json's `config`, `dataset` and `versions` as plain dicts.

    Raises:
      ValueError: when there is no run in `workdir`.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"--workdir={workdir} holds no run: {path} is missing. Train one with train.py first")
    return json.loads(path.read_text())


def lasting(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return of a run's config what no later start of it may change."""
    kept = {name: value for name, value in config.items() if not f"{prefix}{name}".startswith(FREE)}
    return {name: lasting(x, f"{prefix}{name}.") if isinstance(x, dict) else x for name, x in kept.items()}
