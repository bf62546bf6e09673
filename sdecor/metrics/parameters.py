"""Parameters of any function: their names, their layers in order of use, and random replacements."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sdecor.core.checks import check_choice
from sdecor.core.jaxpr import inner_jaxprs

MODES = ("cascading", "independent", "bottom_up")
REDRAWS = ("normal", "permutation")


def redraw(key: jax.Array, params: Any, *, how: str = "normal") -> Any:
    """Return random parameters that resemble the given ones.

    Args:
      key: one typed key.
      params: a tree of floating-point arrays.
      how: "normal" draws each leaf from a normal distribution with the leaf's mean and standard deviation;
        "permutation" shuffles the leaf's values. A leaf of equal values (such as a new bias) does not change.

    Returns:
      A tree like `params`.
    """
    check_choice("how", how, REDRAWS)
    leaves, tree = jax.tree.flatten(params)

    def drawn(key: jax.Array, leaf: jax.Array) -> jax.Array:
        if how == "permutation":
            return jax.random.permutation(key, leaf.ravel()).reshape(leaf.shape)
        values = leaf.astype(jnp.float32)
        return (values.mean() + values.std() * jax.random.normal(key, leaf.shape)).astype(leaf.dtype)

    keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
    return jax.tree.unflatten(tree, [drawn(k, jnp.asarray(leaf)) for k, leaf in zip(keys, leaves, strict=True)])


def leaf_names(params: Any) -> list[str]:
    """Return the paths of the leaves, such as "conv1/kernel", in the tree's order."""
    names = []
    for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]:
        if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):  # the array inside an NNX variable
            path = path[:-1]
        names.append(jax.tree_util.keystr(path, simple=True, separator="/"))
    return names


def layers_of(fn: Callable[..., Any], params: Any, *args: Any) -> dict[str, tuple[str, ...]]:
    """Return the layers of `fn` from its output to its input, by the order in which it uses their parameters.

    The order is read from the function's jaxpr, because the order of a tree's keys is alphabetical.

    Args:
      fn: the network, or an explanation of it, `fn(params, *args)`; it is traced, not run.
      params: a tree of arrays. Leaves of one module (paths that differ only in the last part) are one layer.
      *args: the other arguments, such as the image.

    Returns:
      Dictionary from a layer to the names of its leaves (`leaf_names`), without leaves that are never combined with the
      other arguments.
    """
    names = leaf_names(params)
    jaxpr = jax.make_jaxpr(fn)(params, *args).jaxpr
    order: list[int] = []
    own: list[tuple[int, ...] | None] = [(i,) for i in range(len(names))]
    _follow(jaxpr, own + [None] * (len(jaxpr.invars) - len(own)), order)
    layers: dict[str, tuple[str, ...]] = {}
    for name in [names[i] for i in order]:
        layer = name.rpartition("/")[0] or name
        layers[layer] = (*layers.get(layer, ()), name)
    return dict(reversed(layers.items()))


def schedule(leaves: Sequence[str], layers: Mapping[str, Sequence[str]], mode: str) -> np.ndarray:
    """Return which leaves are random in each of L columns, bool `[L, leaves]`; `layers` go from output to input.

    Column l has these layers random: the first l + 1 for "cascading", layer l alone for "independent", and the last
    l + 1 for "bottom_up".
    """
    check_choice("mode", mode, MODES)
    for layer, names in layers.items():
        for name in names:
            check_choice(f"leaf of layer {layer!r}", name, leaves)
    if not layers:
        raise ValueError(f"layers = {layers!r}: there is no layer to randomise")
    own = np.array([[leaf in names for leaf in leaves] for names in layers.values()])
    if mode == "independent":
        return own
    return np.logical_or.accumulate(own if mode == "cascading" else own[::-1])


def mixed(params: Any, random_params: Any, replaced: jax.Array) -> Any:
    """Return `params` with the leaves of `random_params` where `replaced`, bool `[leaves]`, is True."""
    leaves, tree = jax.tree.flatten(params)
    others, other_tree = jax.tree.flatten(random_params)
    if tree != other_tree or [x.shape for x in leaves] != [x.shape for x in others]:
        raise ValueError(f"random_params is {other_tree}: pass a tree with the structure and shapes of params, {tree}")
    return tree.unflatten([jnp.where(replaced[i], others[i], leaf) for i, leaf in enumerate(leaves)])


def _follow(jaxpr: core.Jaxpr, inputs: Sequence[tuple[int, ...] | None], order: list[int]) -> None:
    """Append parameters to `order` when they are first combined with data.

    A value is None if it depends on data, else the indices of the parameters that it is computed from. A parameter
    counts as used in the equation that combines it with data, not in one that casts, scales or normalises it before.
    """
    values = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> tuple[int, ...] | None:
        return () if isinstance(atom, core.Literal) else values.get(atom, ())

    for equation in jaxpr.eqns:
        given = [read(atom) for atom in equation.invars]
        made = tuple(dict.fromkeys(i for places in given if places for i in places))
        with_data = None in given
        if with_data:
            inner = _inside(equation)
            if inner is not None:
                _follow(inner, given, order)
            order += [i for i in made if i not in order]
        values.update(dict.fromkeys(equation.outvars, None if with_data else made))


def _inside(equation: Any) -> core.Jaxpr | None:
    """Return the body of a call or a loop whose inputs are those of the equation, one by one."""
    return next((inner for inner in inner_jaxprs(equation) if len(inner.invars) == len(equation.invars)), None)
