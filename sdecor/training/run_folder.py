"""The folder of a run and its config.json: the config, package versions and data set."""

import json
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from sdecor.core import files
from sdecor.core.files import differing_fields, list_differences, plain, versions, write_json

FREE = (  # fields that may change when a run is resumed: they change no parameter of the network, but after a NaN
    "log.", "evaluation.", "data.workers", "data.loader", "data.memory_limit_mb", "data.data_dir", "data.path",
    "train.checkpoint_every_steps", "train.on_nonfinite", "train.max_skips", "train.max_rollbacks", "train.loss_limit",
)  # fmt: skip

PAPERS_FORM = "covariance"


def claim(workdir: epath.PathLike, config: Any, dataset: dict[str, Any], *, write: bool = True) -> None:
    """Make `workdir` the folder of this run: compare its config with the stored one, and write config.json.

    A folder without a checkpoint may be claimed with any config.

    Args:
      workdir: local or remote folder, created if missing.
      config: config of the run.
      dataset: facts of the data set: classes, sizes, mean, std.
      write: whether this process writes; all processes compare.

    Raises:
      ValueError: if the folder holds another run, with each differing field in the message (fields in `FREE` may
        differ), or if the folder cannot be made.
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
            logging.warning("package versions differ from those at the run's start:\n%s", list_differences(changed))
    if write:
        files.make_folder("--workdir", workdir)
        write_json(
            workdir / "config.json", {"config": plain(config), "dataset": plain(dataset), "versions": versions()}
        )


def title(config: Mapping[str, Any]) -> str:
    """Return the name of a run in tables: its training method, and its form unless that is the paper's.

    The fields used are `config`'s "method" and "decorrelation". Examples: "sdecor", "sdecor (density)".
    """
    return config["method"] + form_suffix(config["decorrelation"]["form"], config["decorrelation"]["weight"])


def form_suffix(form: str | None, weight: float | None) -> str:
    """Return the form for a name, such as " (density)"; "" for the paper's form, or without decorrelation."""
    return f" ({form})" if weight and form != PAPERS_FORM else ""


def read(workdir: epath.PathLike) -> dict[str, Any]:
    """Return config.json's `config`, `dataset` and `versions` as plain dicts.

    Raises:
      ValueError: if there is no run in `workdir`.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"--workdir={workdir} holds no run: {path} is missing. Train one with train.py first")
    return json.loads(path.read_text())


def lasting(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the config fields that may not change when a run is resumed."""
    kept = {name: value for name, value in config.items() if not f"{prefix}{name}".startswith(FREE)}
    return {name: lasting(x, f"{prefix}{name}.") if isinstance(x, dict) else x for name, x in kept.items()}
