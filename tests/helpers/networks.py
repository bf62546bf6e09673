"""Tiny networks, states, batches and training steps that several tests share."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdecor import masking
from sdecor.core import parallel
from sdecor.data.augment import normalise
from sdecor.models import SmallCNN
from sdecor.training import objective as method, steps, terms
from sdecor.training.state import TrainState, create_optimizer, create_train_state

SHAPE, CLASSES, N = (12, 12, 3), 4, 16


def tiny_model(norm: str = "batch", axis_name: str | None = None, widths=(8,), **options) -> nn.Module:
    """Return a CNN of one convolution by default; each further one adds a second to compiling a step."""
    return SmallCNN(num_classes=CLASSES, widths=widths, norm=norm, axis_name=axis_name, **options)


def tiny_state(model: nn.Module, *, tx=None, ema: bool = False, shape=SHAPE) -> TrainState:
    tx = tx or create_optimizer("sgd")
    return create_train_state(model, tx, key=jax.random.key(1), image_shape=shape, ema=ema)


def loud_state(model: nn.Module, *, tx=None) -> TrainState:
    """Return a tiny state whose features vary by about 1, so that every loss term matters."""
    state = tiny_state(model, tx=tx)
    name = max(name for name in state.params if name.startswith("norm"))
    last = {**state.params[name], "scale": 6.0 * state.params[name]["scale"]}
    return state.replace(params={**state.params, name: last})


def tiny_batch(n: int = N, seed: int = 0, shape=SHAPE) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, n).astype(np.int32),
        "position": np.arange(n, dtype=np.int32),
    }


def objective(
    *,
    consistency: bool = True,
    decorrelation: bool = True,
    variance: bool = False,
    gradient_penalty: bool = False,
    label_smoothing: float = 0.0,
    penalty_of: str = "cross_entropy",
    **options,
) -> method.Objective:
    """Return the objective with these terms; `options` are those of masking and terms, such as `form`."""
    fields = {field.name for field in dataclasses.fields(method.Masking)}
    how = {name: options.pop(name) for name in fields & set(options)}
    used = {
        "consistency": consistency,
        "decorrelation": decorrelation,
        "variance": variance,
        "gradient_penalty": gradient_penalty,
    }
    bound = {name: partial(terms.TERMS[name].function, **_known(name, options)) for name in used if used[name]}
    watched = {name: options[name] for name in ("spatial", "rectify") if name in options}
    if not (decorrelation or variance):
        watched.pop("rectify", None)
    return method.Objective(
        terms=bound,
        label_smoothing=label_smoothing,
        masking=method.Masking(**how) if consistency else None,
        penalty_of=penalty_of if gradient_penalty else None,
        watch=partial(terms.watch, **watched),
    )


def _known(name: str, options: dict) -> dict:
    known = {field.rpartition(".")[2] for field in terms.TERMS[name].options}
    return {option: value for option, value in options.items() if option in known}


def hyper(
    *,
    learning_rate: float = 0.01,
    weight_decay: float = 1e-4,
    mask_fraction: float = 0.5,
    mask_ramp: float = 0.0,
    ramps: dict[str, float] | None = None,
    **weights: float,
) -> steps.Hyper:
    """Return the hyperparameters of a step; a term's weight and ramp are given by the term's name."""
    weights = {"consistency": 1.0, "decorrelation": 0.5, "variance": 0.0, "gradient_penalty": 0.0} | weights
    ramps = dict.fromkeys(weights, 0.0) | (ramps or {})
    return steps.Hyper(
        learning_rate=np.float32(learning_rate),
        weight_decay=np.float32(weight_decay),
        mask_fraction=method.Ramp(np.float32(mask_fraction), np.float32(mask_ramp)),
        weights={name: method.Ramp(np.float32(weight), np.float32(ramps[name])) for name, weight in weights.items()},
    )


def prepare(keys: jax.Array, images: jax.Array) -> jax.Array:
    return normalise(images, (0.5,) * 3, (0.25,) * 3)


def make_step(objective: method.Objective, *, axis_name: str | None = None, prepare=prepare, **options):
    return partial(
        steps.train_step,
        objective=objective,
        prepare=prepare,
        schedule=lambda step: jnp.float32(1.0),
        axis_name=axis_name,
        **options,
    )


def pmapped(step, devices: int, axis: int = 0):
    """Return `(state, batch, hyper, key) -> (state, terms)` on this number of devices, with host values in and out.

    Examples of a batch are along `axis`; it is 1 if the first axis is replicas.
    """
    chosen = jax.local_devices()[:devices]
    compiled = parallel.pmap_step(step, chosen)

    def run(state, batch, values, key):
        state, values, key = (parallel.replicate(tree, chosen) for tree in (state, values, key))
        sharded = jax.tree.map(lambda x: np.stack(np.split(x, devices, axis)), batch)
        return jax.device_get(compiled(state, sharded, values, key))

    return run


def recorded(find: Callable) -> Callable:
    """Return `find` with a second result: the values that passed through `sdecor.masking`; works under `jit`.

    They are a dict of `gradient`, `ranking`, `mask`, `masked` images, and `filler`: the fill of every position.
    """

    def run(*args: Any, **options: Any) -> tuple[Any, dict[str, jax.Array]]:
        seen = {}
        rank_saliency, least_salient, fill = masking.rank_saliency, masking.least_salient, masking.fill

        def rank(gradient, **options):
            seen["gradient"], seen["ranking"] = gradient, rank_saliency(gradient, **options)
            return seen["ranking"]

        def choose(key, saliency, **options):
            seen["mask"] = least_salient(key, saliency, **options)
            return seen["mask"]

        def replace(key, images, mask, **options):
            seen["filler"] = fill(key, images, jnp.ones_like(mask), **options)
            seen["masked"] = fill(key, images, mask, **options)
            return seen["masked"]

        with mock.patch.multiple(masking, rank_saliency=rank, least_salient=choose, fill=replace):
            result = find(*args, **options)
        return result, seen

    return run


def gradients(state: TrainState, batch: dict, *, objective: method.Objective, key=None, **changes) -> tuple:
    """Return `(gradients, batch_stats, terms)` of one batch; `changes` are hyperparameters."""
    return steps.micro_gradients(
        state,
        state.batch_stats,
        batch,
        values=hyper(**changes).at(state.step, objective),
        key=jax.random.key(3) if key is None else key,
        objective=objective,
        prepare=prepare,
        axis_name=None,
    )


def saliency_of_step(state: TrainState, images, labels, *, forward: str, saliency_of: str = "logit") -> jax.Array:
    """Return the step's saliency, from the clean forward's pull-back."""
    clean = partial(method.apply_model, state.apply_fn, batch_stats=state.batch_stats, dropout_key=jax.random.key(0))
    outputs, pull_back, (_, record) = jax.vjp(
        partial(method._recorded, clean, forward == "frozen"), state.params, images, has_aux=True
    )
    how = method.Masking(forward=forward, saliency_of=saliency_of)
    linear = {"outputs": outputs, "pull_back": pull_back, "record": record}
    return method.saliency(partial(clean, state.params), images, labels, how=how, **linear)
