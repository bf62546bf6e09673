"""Build the state before the first step: parameters and optimizer, drawn or read from a file or run."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from sdecor.core import parallel, rng
from sdecor.models import freezing, pretrained
from sdecor.training import run_folder
from sdecor.training.build.inputs import image_size
from sdecor.training.build.network import create_model, without_whitening
from sdecor.training.checkpoint import Checkpoints
from sdecor.training.state import TrainState, create_optimizer, create_train_state


def create_state(
    config: ConfigDict, model: nn.Module, image_shape: tuple[int, ...], key: jax.Array | None = None
) -> TrainState:
    """Initialise the config's model and optimizer on the local devices; keys `[R]` give the state of R replicas.

    The default key is derived from the config's seed.
    """
    key = rng.run_key(config.seed, 0) if key is None else key
    return parallel.replicate(_initial_state(config, model, image_shape, key))


def state_shapes(config: ConfigDict, model: nn.Module, image_shape: tuple[int, ...], key: jax.Array) -> TrainState:
    """Return the shapes of `create_state`, without computing it."""
    return jax.eval_shape(partial(_initial_state, config, model, image_shape), key)


def _initial_state(config: ConfigDict, model: nn.Module, image_shape: tuple[int, ...], key: jax.Array) -> TrainState:
    optimizer = config.optim
    patterns = tuple(config.train.get("freeze", ()))  # configs of earlier versions lack it
    tx = create_optimizer(
        optimizer.name,
        momentum=optimizer.momentum,
        clip_norm=optimizer.clip_norm,
        frozen=partial(freezing.frozen_parameters, patterns=patterns) if patterns else None,
        backbone=freezing.backbone_parameters,
        backbone_lr=optimizer.get("backbone_lr"),
    )
    apply = freezing.freeze(model.apply, patterns) if patterns else model.apply
    ema = optimizer.ema_decay is not None
    return create_train_state(model, tx, key=key, image_shape=image_shape, ema=ema, apply_fn=apply)


def initialise_from(
    config: ConfigDict, model: nn.Module, image_shape: tuple[int, ...], state: TrainState, replicas: int | None
) -> tuple[TrainState, list[str]]:
    """Return the state before the first step with the weights of `config.model.init_from`, and lines about these.

    Replicas all get the same weights. Where the head's shape differs, each keeps its own.

    Raises:
      ValueError: for a file or run that is missing or does not fit the network.
    """
    source = config.model.init_from
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[replicas is not None :], x.dtype), variables)
    try:
        is_run = run_folder.is_checkpoint(source)
        loaded = _variables_of_run(source) if is_run else pretrained.read_pretrained(model, source)
        fitted, notes = pretrained.fit_variables(model, like, loaded, image_shape, source=source)
    except ValueError as error:
        raise ValueError(f"config.model.init_from: {error}") from error
    if replicas is not None:
        fitted = {path: np.broadcast_to(array, (replicas, *array.shape)) for path, array in fitted.items()}
    new = pretrained.replace_variables(variables, {path: parallel.replicate(leaf) for path, leaf in fitted.items()})
    state = state.replace(params=new["params"], batch_stats=new["batch_stats"])
    if state.ema_params is not None:  # an array of its own: the step donates its state
        copy = partial(jax.tree.map, jax.numpy.copy)
        state = state.replace(ema_params=copy(state.params), ema_batch_stats=copy(state.batch_stats))
    return state, [f"the network starts from {source}", *notes]


def _variables_of_run(source: str) -> dict[tuple[str, ...], np.ndarray]:
    """Return the variables of a trained run by their paths: of its best checkpoint, or of the one that is named."""
    folder, step = run_folder.split_checkpoint(source)
    recorded = run_folder.read(folder)
    config, known = ConfigDict(recorded["config"]), recorded["dataset"]
    image_shape = image_size(config, tuple(known["image_shape"]))
    model = create_model(config, known["num_classes"], image_shape, tapped=False)
    state = state_shapes(config, model, image_shape, rng.run_key(config.seed, 0))
    with Checkpoints(folder, create=False) as checkpoints:
        restored = checkpoints.restore(state, checkpoints.best_step() if step is None else step)
    if restored is None:
        raise ValueError(f"{folder} has no checkpoint")
    _, variables = without_whitening(model, restored[0].variables)
    return flatten_dict(jax.tree.map(np.asarray, parallel.to_host(variables)))
