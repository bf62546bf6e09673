"""ZCA whitening in the forward pass of any Linen module, and its folding into the weights after training."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdecor.core.arrays import inverse_root, widened
from sdecor.core.checks import check_count, check_range
from sdecor.models.tap import Calls, check_called_once

STATISTICS = "whitening"  # their name in the collection batch_stats
_MOMENTUM = 0.9  # of the running statistics, as in BatchNorm
_Moments = dict[str, jax.Array]  # mean [D], and covariance [groups, D / groups, D / groups]


class Whitened(nn.Module):
    """A Linen module that whitens the features at named linear layers of another module.

    The features `h` of a batch become `W (h − μ)`, with the ZCA matrix `W = (C / ‖C‖ + ε)^-½ / √‖C‖` of their
    covariance `C`, by Newton–Schulz iterations. Eval mode uses running averages of μ and C, in the collection
    `batch_stats`. All other variables are those of `module`, under the same names. After training, `fold_whitening`
    gives variables with which `module` alone computes the same, at its own cost.

    - `nn.Dense`: its *input* is whitened.
    - `nn.Conv`: its *output* is multiplied by W at each position. The mean stays: a BatchNorm that follows removes it.

    Attributes:
      module: an unbound module, called as `module(images, train=…)`.
      layers: paths of the layers, such as "head" or "stage2/block1".
      group: number of features that are whitened together, a divisor of D; None for all. A batch should have at least
        twice as many samples.
      epsilon: ε, which bounds how much directions without variance grow.
      iterations: Newton–Schulz iterations.
      through_root: whether gradients flow through W; they always flow through μ.
      axis_name: device axis over which the batch's statistics are combined.

    Raises:
      ValueError: for an attribute out of range, a layer that is not called once or is no `nn.Dense` with a bias and no
        ungrouped `nn.Conv`, and a group that does not divide D.

    References:
      Huang et al., Decorrelated Batch Normalization, 2018, https://arxiv.org/abs/1804.08450. Huang et al., Iterative
      Normalization: Beyond Standardization towards Efficient Whitening, 2019, https://arxiv.org/abs/1904.03441.
    """

    module: nn.Module
    layers: tuple[str, ...] = ("head",)
    group: int | None = None
    epsilon: float = 1e-3
    iterations: int = 20
    through_root: bool = True
    axis_name: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            raise ValueError(f"layers = {self.layers!r} must be a sequence of names: ({self.layers!r},)")
        self.layers = tuple(self.layers)
        check_range("epsilon", self.epsilon, 0, low_open=True)
        check_count("iterations", self.iterations, 1)
        if self.group is not None:
            check_count("group", self.group, 1)
        super().__post_init__()

    def setup(self) -> None:
        nn.share_scope(self, self.module)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Any:
        running = self.variable("batch_stats", STATISTICS, dict)
        moments: dict[str, _Moments] = {}

        def whiten(layer: nn.Module, name: str, x: jax.Array) -> jax.Array:
            samples = widened(x).reshape(-1, x.shape[-1])
            size = _group_size(name, x.shape[-1], self.group)
            if self.is_initializing():
                moments[name] = _white(x.shape[-1], size)
            else:
                moments[name] = _moments(samples, size, self.axis_name) if train else running.value[name]
            root = self.root(moments[name])
            if isinstance(layer, nn.Dense):
                samples = samples - moments[name]["mean"][None]
            return _multiply(samples, root).reshape(x.shape).astype(x.dtype)

        calls = _Whitening(self.layers, whiten)
        with nn.intercept_methods(calls):
            output = self.module(images, train=train)
        for name in self.layers:
            check_called_once(name, calls.counts)
        if self.is_initializing():
            running.value = moments
        elif train and self.is_mutable_collection("batch_stats"):
            constant = jax.lax.stop_gradient(moments)
            running.value = jax.tree.map(lambda a, b: _MOMENTUM * a + (1 - _MOMENTUM) * b, running.value, constant)
        return output

    def root(self, moments: _Moments) -> jax.Array:
        """Return the ZCA matrices `[groups, D / groups, D / groups]`."""
        covariance = moments["covariance"] if self.through_root else jax.lax.stop_gradient(moments["covariance"])
        options = {"epsilon": self.epsilon, "iterations": self.iterations}
        return jax.vmap(lambda matrix: inverse_root(matrix, **options))(covariance)


class _Whitening(Calls):
    """An interceptor that whitens at the wanted layers, with `whiten(layer, name, features)`."""

    def __init__(self, wanted: tuple[str, ...], whiten: Callable[[nn.Module, str, jax.Array], jax.Array]) -> None:
        super().__init__(wanted)
        self.whiten = whiten

    def __call__(
        self, next_fun: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        name, layer = self.name(context), context.module
        if not name or name not in self.wanted or self.counts.get(name):
            return super().__call__(next_fun, args, kwargs, context)
        _check_kind(name, layer)
        if isinstance(layer, nn.Dense):
            return super().__call__(next_fun, (self.whiten(layer, name, *args),), kwargs, context)
        output = super().__call__(next_fun, args, kwargs, context)
        return self.whiten(layer, name, output)


def fold_whitening(module: Whitened, variables: Any) -> dict[str, Any]:
    """Fold the whitening into the weights of its layers.

    Args:
      module: the module that was trained.
      variables: its variables, with the collections `params` and `batch_stats`.

    Returns:
      Variables of `module.module`, which in eval mode computes what `module` computes, up to rounding.
    """
    params = jax.tree.map(lambda leaf: leaf, variables["params"])  # dicts of its own
    statistics = {name: value for name, value in variables["batch_stats"].items() if name != STATISTICS}
    for name, moments in variables["batch_stats"][STATISTICS].items():
        root = module.root(moments)
        *path, last = name.split("/")
        parent = params
        for part in path:
            parent = parent[part]
        layer = parent[last]
        if layer["kernel"].ndim == 2:
            kernel = _multiply(layer["kernel"].T, root).T
            bias = layer["bias"] - jnp.matmul(moments["mean"], kernel, precision="highest")
            parent[last] = {**layer, "kernel": kernel, "bias": bias}
        else:
            parent[last] = {key: _multiply(leaf, root) for key, leaf in layer.items()}
    return {**variables, "params": params, "batch_stats": statistics}


def _check_kind(name: str, layer: nn.Module) -> None:
    if isinstance(layer, nn.Dense) and layer.use_bias:
        return
    if isinstance(layer, nn.Conv) and layer.feature_group_count == 1:
        return
    raise ValueError(
        f"layer {name!r} is {type(layer).__name__}: only the input of an nn.Dense with a bias and the output of an "
        "nn.Conv without feature groups can be whitened, because only there it folds into the weights"
    )


def _group_size(name: str, width: int, group: int | None) -> int:
    if width % (group or width):
        raise ValueError(f"group = {group} does not divide the {width} features of layer {name!r}")
    return group or width


def _white(width: int, size: int) -> _Moments:
    return {"mean": jnp.zeros(width), "covariance": jnp.tile(jnp.eye(size), (width // size, 1, 1))}


def _moments(samples: jax.Array, size: int, axis_name: str | None) -> _Moments:
    """Return mean and covariance (divided by N − 1) of the samples `[N, D]` of all members of the axis."""
    members = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    count = samples.shape[0] * members

    def total(x: jax.Array) -> jax.Array:
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    mean = total(jnp.sum(samples / count, axis=0, keepdims=True))
    groups = (samples - mean).reshape(samples.shape[0], -1, size)
    products = jnp.einsum("ngi,ngj->gij", groups, groups, precision="highest")
    return {"mean": mean[0], "covariance": total(products) / max(count - 1, 1)}


def _multiply(x: jax.Array, root: jax.Array) -> jax.Array:
    """Multiply the last axis of `x [..., D]` by block-diagonal matrices `[groups, D / groups, D / groups]`."""
    groups = x.reshape(*x.shape[:-1], root.shape[0], -1)
    return jnp.einsum("...gi,gij->...gj", groups, root, precision="highest").reshape(x.shape)
