"""The parameters of any function: their names, the layers they form in order of use, and random ones in their place."""

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
      how: "normal", each leaf from a normal distribution of the leaf's mean and standard deviation; or "permutation",
        the leaf's own values in random order. A leaf of equal values (a new bias) stays as it is.

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
    """Return the leaves' paths, such as "conv1/kernel", in the tree's order."""
    names = []
    for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]:
        if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):  # the array inside an NNX variable
            path = path[:-1]
        names.append(jax.tree_util.keystr(path, simple=True, separator="/"))
    return names


def layers_of(fn: Callable[..., Any], params: Any, *args: Any) -> dict[str, tuple[str, ...]]:
    """Return the layers of `fn`, from its output to its input, in the order in which it uses their parameters.

    The order is read from the function's equations: that of a tree's keys is alphabetical.

    Args:
      fn: `fn(params, *args)`: the network, or an explanation of it; it is traced, not run.
      params: a tree of arrays. Leaves of one module (one path but for its last part) are one layer.
      *args: the other arguments, the image among them.

    Returns:
      Layer → names of its leaves (`leaf_names`), without the leaves that never meet the other arguments.
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
    """Return which leaves are random in which column, bool `[L, leaves]`; `layers` go from the output to the input.

    Column l of "cascading" has the first l + 1 layers random, of "independent" layer l alone, and of "bottom_up" the
    last l + 1 layers.
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
    """Return `params` with those leaves from `random_params` whose place in `replaced`, bool `[leaves]`, is True."""
    leaves, tree = jax.tree.flatten(params)
    others, other_tree = jax.tree.flatten(random_params)
    if tree != other_tree or [x.shape for x in leaves] != [x.shape for x in others]:
        raise ValueError(f"random_params is {other_tree}: pass a tree with the structure and shapes of params, {tree}")
    return tree.unflatten([jnp.where(replaced[i], others[i], leaf) for i, leaf in enumerate(leaves)])


def _follow(jaxpr: core.Jaxpr, inputs: Sequence[tuple[int, ...] | None], order: list[int]) -> None:
    """Append parameters to `order` as they meet data.

    A value is None if it depends on data, else the places of the parameters it is made of. Those count as used in the
    equation that puts them together with data, not in the one that casts, scales or normalises them before.
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
