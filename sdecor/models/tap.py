"""The outputs of named layers of any Linen module, which is not changed."""

import difflib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Calls:
    """An interceptor that counts the calls of every layer and keeps the outputs of the wanted ones.

    Layers under a lifted transformation (`nn.remat`, `nn.scan`, …) are in another scope tree and are skipped: their
    values may not leave the transformation.
    """

    def __init__(self, wanted: tuple[str, ...] = ()) -> None:
        self.wanted = wanted
        self.counts: dict[str, int] = {}
        self.outputs: dict[str, Any] = {}
        self._root: Any = None  # the scope of the first called module; names are relative to it
        self._open: set[str] = set()

    def name(self, context: nn.module.InterceptorContext) -> str:
        scope = context.module.scope
        if context.method_name != "__call__" or scope is None:
            return ""
        if self._root is None:
            self._root = scope
        prefix = self._root.path
        inside = scope.root is self._root.root and scope.path[: len(prefix)] == prefix
        return "/".join(scope.path[len(prefix) :]) if inside else ""

    def __call__(
        self, next_fun: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        name = self.name(context)
        if not name or name in self._open:  # a call of super() does not count
            return next_fun(*args, **kwargs)
        self.counts[name] = self.counts.get(name, 0) + 1
        self._open.add(name)
        try:
            output = next_fun(*args, **kwargs)
        finally:
            self._open.discard(name)
        if name in self.wanted:
            self.outputs[name] = output
        return output


class Tap(nn.Module):
    """A Linen module that returns the logits of another module and the outputs of its named layers.

    `Tap(module, layers)` takes the arguments of `module` and has the same variables under the same names, so that each
    works with the other's parameters. It draws the same random numbers, updates the same collections, and works under
    `jit`, `grad`, `vmap` and `pmap`; gradients flow through the tapped outputs. Layers under a lifted transformation,
    such as `nn.remat(Block)`, cannot be tapped: name the layer before or after it.

    Attributes:
      module: an unbound module that returns logits, or a tuple with the logits first.
      layers: module paths such as "Dense_0" or "stage2/block1"; `layer_names` lists them.

    Called like `module`, it returns `(logits, {layer: output})`, with each output as the layer's `__call__` returns it.

    Raises:
      ValueError: if a layer is not called, or is called more than once (shared weights), so that its output is
        ambiguous; and if the module returns neither logits nor a tuple with the logits first.
    """

    module: nn.Module
    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            raise ValueError(f"layers = {self.layers!r} must be a sequence of names: ({self.layers!r},)")
        self.layers = tuple(self.layers)
        super().__post_init__()

    def setup(self) -> None:
        nn.share_scope(self, self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, dict[str, Any]]:
        calls = Calls(self.layers)
        with nn.intercept_methods(calls):
            output = self.module(*args, **kwargs)
        for layer in self.layers:
            check_called_once(layer, calls.counts)
        return _logits_of(output), {layer: calls.outputs[layer] for layer in self.layers}


def _logits_of(output: Any) -> jax.Array:
    logits = output[0] if isinstance(output, tuple) and output else output
    if isinstance(logits, jax.Array | np.ndarray) and jnp.issubdtype(logits.dtype, jnp.floating):
        return logits
    if isinstance(output, dict):
        found = f"a dict with keys {', '.join(map(repr, output))}"
    elif isinstance(output, tuple):
        found = f"a tuple ({', '.join(map(_described, output))})"
    else:
        found = _described(output)
    raise ValueError(
        f"the tapped module returned {found}: a Tap takes a module that returns logits (a floating-point array) or a "
        "tuple with the logits first. Wrap your module in one that returns these"
    )


def _described(output: Any) -> str:
    """Describe a module's output for an error: an array's dtype and shape, or the type of anything else."""
    shape = getattr(output, "shape", None)
    return type(output).__name__ if shape is None else f"{output.dtype} array {tuple(shape)}"


def check_called_once(layer: str, counts: dict[str, int]) -> None:
    """Raise ValueError unless a layer was called once in a forward; `counts` are the calls of all layers."""
    count = counts.get(layer, 0)
    if count == 1:
        return
    if count > 1:
        raise ValueError(
            f"layer {layer!r} is called {count} times in one forward: its output is ambiguous. Name a layer around it "
            "that is called once"
        )
    close = difflib.get_close_matches(layer, counts, n=3)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "."
    raise ValueError(f"layer {layer!r} is not called by the module{hint} Its layers are: {', '.join(counts)}")


def layer_names(module: nn.Module, image_shape: tuple[int, ...], **kwargs: Any) -> tuple[str, ...]:
    """Return the layers of `module` that `Tap` accepts, in the order of their calls.

    The module is only traced, not computed.

    Args:
      module: an unbound Linen module, called with images `[1, *image_shape]`.
      image_shape: shape of one image, `(H, W, C)`.
      **kwargs: more arguments of the module's call, such as `train=True`.

    Returns:
      Module paths such as "stage2/block1", an outer layer before its inner ones.
    """
    calls = Calls()

    def trace(key: jax.Array, images: jax.Array) -> Any:
        with nn.intercept_methods(calls):
            return module.init({"params": key, "dropout": key}, images, **kwargs)

    jax.eval_shape(trace, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return tuple(name for name, count in calls.counts.items() if count == 1)
