"""Modules whose parameters and BatchNorm statistics stay as they are in training."""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

BACKBONE = "backbone"  # a pattern for all but the last linear layer
HEAD = "head"  # the last linear layer, of this name in all networks here


def is_frozen(path: str, patterns: Sequence[str]) -> bool:
    """Return whether a module or parameter, by its path "stage1/block1/conv1", is in a module that a pattern names.

    Patterns are those of `fnmatch`; a `*` also matches a slash. "backbone" names all but the module `head`.
    """
    parts = path.split("/")
    prefixes = ["/".join(parts[: length + 1]) for length in range(len(parts))]
    return any(
        parts[0] != HEAD if pattern == BACKBONE else bool(fnmatch.filter(prefixes, pattern)) for pattern in patterns
    )


def frozen_parameters(params: Any, patterns: Sequence[str]) -> Any:
    """Return a tree of booleans: which of the parameters `patterns` freeze.

    Raises:
      ValueError: if a pattern matches no parameter, or no parameter is left to train.
    """
    paths = jax.tree_util.tree_map_with_path(lambda path, _: _joined(path), params)
    known = jax.tree.leaves(paths)
    for pattern in patterns:
        if not any(is_frozen(path, [pattern]) for path in known):
            modules = sorted({path.partition("/")[0] for path in known})
            raise ValueError(
                f"train.freeze = {pattern!r} matches no module: use backbone (all but the head), or a path or pattern "
                f"of modules, which are {', '.join(modules)} and those inside them"
            )
    frozen = jax.tree.map(lambda path: is_frozen(path, patterns), paths)
    if all(jax.tree.leaves(frozen)):
        raise ValueError(f"train.freeze = {tuple(patterns)!r} leaves no parameter to train: leave out the head")
    return frozen


def backbone_parameters(params: Any) -> Any:
    """Return a tree of booleans: which of the parameters are not those of the last linear layer."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not is_head(_joined(path)), params)


def is_head(path: str) -> bool:
    """Return whether a path is that of the last linear layer or of a parameter of it."""
    return path.partition("/")[0] == HEAD


def freeze(apply: Callable[..., Any], patterns: Sequence[str]) -> Callable[..., Any]:
    """Return `module.apply` with the modules that `patterns` name frozen.

    Their parameters get no gradient. Their BatchNorms run in eval mode even in training: they use the running
    statistics and do not update them. Other layers in them, such as dropout, are as without this.
    """

    def frozen_apply(variables: Any, *args: Any, **options: Any) -> Any:
        frozen = frozen_parameters(variables["params"], patterns)
        params = jax.tree.map(
            lambda leaf, stays: jax.lax.stop_gradient(leaf) if stays else leaf, variables["params"], frozen
        )
        with nn.intercept_methods(_eval_mode(patterns)):
            return apply({**variables, "params": params}, *args, **options)

    return frozen_apply


def _eval_mode(patterns: Sequence[str]) -> Callable[..., Any]:
    """Return an interceptor that runs the BatchNorms of frozen modules with their running statistics."""
    running = False

    def interceptor(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal running
        layer = context.module
        chosen = isinstance(layer, nn.BatchNorm) and context.method_name == "__call__" and not running
        if not chosen or not is_frozen("/".join(layer.path), patterns):
            return next_fun(*args, **kwargs)
        alone = layer.clone(parent=None, name=None, use_running_average=None)
        running = True
        try:
            return alone.apply(layer.variables, args[0] if args else kwargs["x"], use_running_average=True)
        finally:
            running = False

    return interceptor


def _joined(path: Any) -> str:
    return "/".join(str(key.key) for key in path)
