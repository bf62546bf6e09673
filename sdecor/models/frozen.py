"""Batch statistics as constants of the pull-back, for any module with Flax's BatchNorm."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# One entry per call of a BatchNorm, under its module path: the layer's output and the batch's "mean" and "var".
Record = dict[str, list[dict[str, jax.Array]]]


@contextmanager
def frozen_statistics(record: Record | None = None) -> Iterator[None]:
    """Make BatchNorm treat its batch's statistics as constants when derivatives are taken.

    Inside the context, every `nn.BatchNorm` in train mode returns the same value and updates its running statistics as
    outside. Its derivatives with respect to images and parameters are those of eval mode, with the batch's statistics
    in place of the running ones. Examples are then independent in the pull-back: the input gradient of one image does
    not contain its effect on the others. Eval mode, initialisation and other layers are unchanged.

    With the `record` of an ordinary forward on the same images and parameters, that forward is not repeated: the
    convolutions before a BatchNorm become dead code, which the compiler removes, and no statistics are combined over
    devices again.

    Trace inside the context: a function that was jitted before is not traced again and keeps its ordinary derivatives.

    Args:
      record: recorded statistics from `record_statistics`; None computes the statistics here.

    Raises:
      ValueError: if a BatchNorm is called that `record` does not contain.
    """
    replayed: dict[str, int] = {}

    def frozen(layer: nn.BatchNorm, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        if record is None:
            constants = jax.lax.stop_gradient((layer.variables, x))
            output, statistics = _train_mode(layer, *constants, mask=mask)
        else:
            name = "/".join(layer.path)
            call = replayed[name] = replayed.get(name, 0) + 1
            output, statistics = _recorded(record, name, call=call, shape=x.shape)
        _update_running(layer, statistics)
        variables = {**layer.variables, "batch_stats": jax.lax.stop_gradient(statistics)}
        path = _alone(layer).apply(variables, x, use_running_average=True)
        return _value_with_tangent_of(jax.lax.stop_gradient(output), path)

    with nn.intercept_methods(_instead_of_batch_norm(frozen)):
        yield


@contextmanager
def record_statistics() -> Iterator[Record]:
    """Record the BatchNorm statistics of a train-mode forward, so that `frozen_statistics` need not repeat it.

    The forward, its derivatives and its updates of running statistics are unchanged. The recorded statistics are
    collected while the context is open and belong to the trace that made them: return them as auxiliary output.

        def forward(params, images):
            with record_statistics() as record:
                outputs, updates = module.apply(…, images, train=True, mutable=["batch_stats"])
            return outputs, (updates, record)

        outputs, pull_back, (updates, record) = jax.vjp(forward, params, images, has_aux=True)
        with frozen_statistics(record):
            _, frozen_pull_back, _ = jax.vjp(partial(forward, params), images, has_aux=True)

    Yields:
      The recorded statistics, a tree of arrays; empty for a module without BatchNorm.
    """
    record: Record = {}

    def recorded(layer: nn.BatchNorm, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        output, statistics = _train_mode(layer, layer.variables, x, mask=mask)
        _update_running(layer, statistics)
        record.setdefault("/".join(layer.path), []).append({"output": output, **statistics})
        return output

    with nn.intercept_methods(_instead_of_batch_norm(recorded)):
        yield record


@jax.custom_jvp
def _value_with_tangent_of(value: jax.Array, path: jax.Array) -> jax.Array:
    """Return `value` with the derivatives of `path`; the value of `path` is never used."""
    return value


@_value_with_tangent_of.defjvp
def _value_with_tangent_of_jvp(primals: Any, tangents: Any) -> Any:
    return primals[0], tangents[1]


def _instead_of_batch_norm(handle: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Return the interceptor that calls `handle(layer, x, mask)` instead of every BatchNorm in train mode."""
    handling = False

    def interceptor(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal handling
        layer = context.module
        ordinary = handling or not isinstance(layer, nn.BatchNorm) or context.method_name != "__call__"
        if ordinary or layer.is_initializing() or _uses_running_average(layer, args, kwargs):
            return next_fun(*args, **kwargs)

        def instead(next_fun: Callable[..., Any], _args: Any, _kwargs: Any, inner: nn.module.InterceptorContext) -> Any:
            if inner.module is not layer:
                return next_fun(*_args, **_kwargs)
            return handle(layer, args[0] if args else kwargs["x"], kwargs.get("mask"))

        handling = True  # `handle` calls BatchNorm itself
        try:
            # Entered last, `instead` is the innermost interceptor: the module's own, such as a Tap's, see its output.
            with nn.intercept_methods(instead):
                return layer(*args, **kwargs)
        finally:
            handling = False

    return interceptor


def _uses_running_average(layer: nn.BatchNorm, args: Any, kwargs: Any) -> bool:
    argument = args[1] if len(args) > 1 else kwargs.get("use_running_average")
    return bool(layer.use_running_average if argument is None else argument)


def _alone(layer: nn.BatchNorm) -> nn.BatchNorm:
    """Return the layer detached from its module, with momentum 0: its running statistics become the batch's."""
    return layer.clone(parent=None, name=None, momentum=0.0, use_running_average=None)


def _train_mode(
    layer: nn.BatchNorm, variables: Any, x: jax.Array, *, mask: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the layer's train-mode output and the batch's statistics, combined over devices as the layer does."""
    variables = {**variables, "batch_stats": jax.tree.map(jnp.zeros_like, variables["batch_stats"])}
    output, updated = _alone(layer).apply(variables, x, use_running_average=False, mask=mask, mutable=["batch_stats"])
    return output, dict(updated["batch_stats"])


def _recorded(
    record: Record, name: str, *, call: int, shape: tuple[int, ...]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    entries = record.get(name, [])
    if len(entries) < call or entries[call - 1]["output"].shape != shape:
        raise ValueError(
            f"record has no call {call} of BatchNorm {name!r} with shape {shape}: it must come from a train-mode "
            "forward of the same module on the same images"
        )
    entry = entries[call - 1]
    return entry["output"], {key: value for key, value in entry.items() if key != "output"}


def _update_running(layer: nn.BatchNorm, statistics: dict[str, jax.Array]) -> None:
    for name, value in statistics.items():
        running = layer.get_variable("batch_stats", name)
        layer.put_variable("batch_stats", name, layer.momentum * running + (1 - layer.momentum) * value)
