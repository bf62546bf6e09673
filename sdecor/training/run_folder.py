"""The folder of a run and its config.json: the config, package versions and data set.

Each checkpoint stores the config and the data set too, so that a run cannot continue with others where config.json is
missing or damaged.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging
from etils import epath

from sdecor.core import files, leases
from sdecor.core.commands import TemporaryFailure
from sdecor.core.files import differing_fields, list_differences, plain, versions, write_json
from sdecor.training import record

FREE = (  # fields that may change when a run is resumed: they change no parameter of the network, but after a NaN
    "log.", "evaluation.", "data.workers", "data.loader", "data.memory_limit_mb", "data.data_dir", "data.path",
    "train.checkpoint_every_steps", "train.checkpoint_every_minutes", "train.steps_per_call",
    "data.on_error",  # a run that stopped at a bad file may leave it out from then on
    "train.on_nonfinite", "train.max_skips", "train.max_rollbacks", "train.loss_limit",
)  # fmt: skip

# Fields that earlier versions lacked, with the value that means what these versions did.
ADDED = {
    "data.train_fraction": 1.0, "masking.every": 1, "masking.start_epoch": 0.0, "model.remat": None,
    "masking.remat": False, "masking.block": 1, "model.width": None, "train.loss": "cross_entropy",
    "decorrelation.group": None, "decorrelation.through_root": True,
    "model.init_from": None, "model.head": None, "optim.backbone_lr": None, "train.freeze": [],
}  # fmt: skip

PAPERS_FORM = "covariance"
LOCK, LEASE = ".lock", ".lease.json"
PREDECESSOR_SECONDS = 10.0  # for a job that was just asked to stop, and whose successor starts already


@contextlib.contextmanager
def lock(workdir: epath.PathLike, *, hold: bool = True) -> Iterator[leases.Local | leases.Lease | None]:
    """Make a run's folder and lock it for this job, if `hold` is set: in the main process alone.

    The lock dies with its holder. A folder that stays empty is removed again.

    Raises:
      ValueError: if another job holds the folder, or the folder cannot be made or written.
      TemporaryFailure: if the folder cannot be written now, for example because the disk is full.
    """
    if not hold:
        yield None
        return
    files.check_checkpoints("--workdir", workdir)
    folder = files.make_folder("--workdir", workdir)
    wait = {"busy": "is being trained", "wait": PREDECESSOR_SECONDS}
    try:
        with contextlib.ExitStack() as stack:
            try:
                held = stack.enter_context(leases.hold(folder, lock=LOCK, lease=LEASE, **wait))
            except OSError as error:
                raise _unwritable(workdir, error) from error
            yield held
    finally:
        with contextlib.suppress(Exception):
            if not any(folder.iterdir()):
                folder.rmdir()


def claim(workdir: epath.PathLike, config: Any, dataset: dict[str, Any], *, write: bool = True) -> None:
    """Make `workdir` the folder of this run: compare its config with the stored one, and write config.json.

    A folder without a checkpoint may be claimed with any config. All processes call this together.

    Args:
      workdir: local or remote folder, created if missing.
      config: config of the run.
      dataset: facts of the data set: classes, sizes, mean, std.
      write: whether this process writes; all processes compare.

    Raises:
      ValueError: if the folder holds another run, with each differing field in the message (fields in `FREE` may
        differ), if nothing tells which run it holds, or if the folder cannot be written.
      TemporaryFailure: if the folder cannot be written now, for example because the disk is full.
    """
    from sdecor.core import parallel  # needs JAX, without which a sweep starts

    workdir = epath.Path(workdir)
    found = _stored(workdir)
    if found is not None:
        differences = {
            **differing_fields(lasting(found["config"]), lasting(plain(config))),
            **differing_fields(found["dataset"], plain(dataset), prefix="dataset."),
        }
        if differences:
            raise ValueError(
                f"{workdir} holds a run of another config:\n{list_differences(differences)}\n"
                "Use another --workdir, or the same config to continue that run."
            )
        changed = differing_fields(found.get("versions", versions()), versions())
        if changed:
            logging.warning("package versions differ from those at the run's start:\n%s", list_differences(changed))
    failure = None
    try:
        if write:
            files.make_folder("--workdir", workdir)
            content = {"config": plain(config), "dataset": plain(dataset), "versions": versions()}
            write_json(workdir / "config.json", content)
    except (OSError, ValueError) as error:
        failure = _unwritable(workdir, error)
    if parallel.any_process(failure is not None):
        raise failure or ValueError(f"--workdir = {str(workdir)!r} cannot be written by the main process")


def _unwritable(workdir: epath.PathLike, error: Exception) -> Exception:
    """Return the error to raise for a folder that cannot be made or written."""
    cause, text = error.__cause__, str(error)  # of `files.make_folder`
    if isinstance(error, OSError):
        cause, text = error, f"--workdir = {str(workdir)!r} cannot be written: {error.strerror or error}"
    passing = isinstance(cause, OSError) and files.may_pass(cause)
    return (TemporaryFailure if passing else ValueError)(text)


def _stored(workdir: epath.Path) -> dict[str, Any] | None:
    """Return the config and data set of the run in a folder; None if it holds no checkpoint.

    They are those of config.json, or of the latest checkpoint that has them if config.json is missing or damaged.

    Raises:
      ValueError: if neither can be read.
    """
    checkpoints = workdir / "checkpoints"
    steps = record.steps(checkpoints)
    if not steps:
        return None
    try:
        return read(workdir)
    except ValueError as error:
        for step in reversed(steps):
            with contextlib.suppress(ValueError):
                content = record.read(checkpoints, step)
                if "config" in content:
                    logging.warning("%s; the config of the checkpoint of step %d is used", error, step)
                    return content
        path = workdir / "config.json"
        damage = "damaged" if path.exists() else "missing"
        raise ValueError(
            f"{path} is {damage}, and no checkpoint in {checkpoints} says with which config it was trained: put the "
            "file back from a copy, or use another --workdir"
        ) from error


def facts(workdir: epath.PathLike) -> dict[str, Any]:
    """Return what a checkpoint stores of its run, from config.json: the config's lasting fields and the data set."""
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        return {}
    content = read(workdir)
    return {"config": lasting(content["config"]), "dataset": content["dataset"]}


def is_checkpoint(source: epath.PathLike) -> bool:
    """Return whether a path is that of a run or of one of its checkpoints."""
    return (split_checkpoint(source)[0] / "checkpoints").is_dir()


def split_checkpoint(source: epath.PathLike) -> tuple[epath.Path, int | None]:
    """Return the run's folder and the step of `RUN/checkpoints/STEP`; None as the step of `RUN`."""
    path = epath.Path(source)
    if path.name.isdigit() and path.parent.name == "checkpoints":
        return path.parent.parent, int(path.name)
    return path, None


def known_dataset(workdir: epath.PathLike) -> dict[str, Any] | None:
    """Return the facts of the data set that a run with a checkpoint recorded, or None without one."""
    stored = _stored(epath.Path(workdir))
    return None if stored is None else stored["dataset"]


def title(config: Mapping[str, Any]) -> str:
    """Return the name of a run in tables: its training method, and its form unless that is the paper's.

    The fields used are `config`'s "method" and "decorrelation". Examples: "sdecor", "sdecor (density)".
    """
    return config["method"] + form_suffix(config["decorrelation"]["form"], config["decorrelation"]["weight"])


def title_of_members(config: Mapping[str, Any], count: int) -> str:
    """Return the title of a single run or, with their number, of replicas."""
    return title(config) if count == 1 else f"{title(config)} × {count}"


def form_suffix(form: str | None, weight: float | None) -> str:
    """Return the form for a name, such as " (density)"; "" for the paper's form, or without decorrelation."""
    return f" ({form})" if weight and form != PAPERS_FORM else ""


def read(workdir: epath.PathLike) -> dict[str, Any]:
    """Return config.json's `config`, `dataset` and `versions` as plain dicts.

    Raises:
      ValueError: if there is no run in `workdir`, or its config.json is damaged.
    """
    files.check_location("--workdir", workdir)
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"--workdir={workdir} holds no run: {path} is missing. Train one with train.py first")
    remedy = "put it back from a copy, or start train.py again with the config of this run, which writes the file anew"
    content = files.read_json(path, remedy=remedy)
    for name in ("config", "dataset", "versions"):
        if not isinstance(content.get(name), dict):
            raise ValueError(f"{path} is damaged: its {name!r} is no JSON object; {remedy}")
    return content


def lasting(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the config fields that may not change when a run is resumed.

    A field of `ADDED` is left out if it has the value there, so that configs of earlier versions are the same.
    """
    kept = {}
    for name, value in config.items():
        field = f"{prefix}{name}"
        if not field.startswith(FREE) and not (field in ADDED and value == ADDED[field]):
            kept[name] = lasting(value, f"{field}.") if isinstance(value, dict) else value
    return kept
