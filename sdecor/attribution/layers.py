"""Layers of a network: how to find them in the function's jaxpr, their output and its gradient.

A layer is named by the `jax.named_scope` around its equations. Linen sets the scopes to module names. A module of Flax
NNX, or of another library whose modules are objects that are called, is named while the function is traced.
"""

import contextlib
import difflib
import functools
import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from sdecor.attribution.targets import Target, checked_logits, is_function, score_of
from sdecor.core.jaxpr import called, interpret, kind_of, run, run_equations, scope_of, value_of, values_of
from sdecor.rules.program import ELEMENTWISE, is_elementwise_call

OTHERWISE = "give the layer as a pair (features_fn, head_fn)"
_SCOPING = threading.RLock()
_CLOSED = ("scan", "while", "cond", "custom_vjp_call")  # equations whose inner values cannot be read
_LAYOUT = ("transpose", "reshape", "squeeze", "broadcast_in_dim")  # operations that only rearrange values


def named_layer(jaxpr: core.Jaxpr, name: str) -> core.Var:
    """Return the last value that is computed in the named scope `name` and used outside of it for the logits."""
    equations = _between(jaxpr)
    path = _full_path(name, equations)
    inside = [equation for equation in equations if path in _paths(equation)]
    read_outside = set(jaxpr.outvars).union(*(_read(e) for e in equations if path not in _paths(e)))
    leaving = [v for equation in inside for v in _written(equation) if v in read_outside]
    if not leaving:
        raise ValueError(f"layer = {name!r} has no floating point output that the logits depend on; {OTHERWISE}")
    return leaving[-1]


@contextlib.contextmanager
def scoped(module: Callable[..., Any]) -> Iterator[str]:
    """Put a module's computation into a named scope while a function that calls the module is traced.

    Inside the context the module's class has another `__call__`, which adds the scope for this one module. The original
    is restored at the end. Other threads may call modules of the class meanwhile; only another `scoped` must wait.

    Args:
      module: an object whose class defines `__call__`, such as a Flax NNX submodule that the function calls.

    Yields:
      The name of the scope.

    Raises:
      ValueError: for any other object, and at the end if the module was not called.
    """
    if not callable(module):
        raise ValueError(f"layer = {module!r} is neither a named scope nor a module: pass one of these, or {OTHERWISE}")
    kind, calls, name = type(module), [], f"{type(module).__name__}@{id(module):x}"
    with _SCOPING:
        original, own = kind.__call__, "__call__" in vars(kind)

        @functools.wraps(original)
        def called(self: Any, *args: Any, **options: Any) -> Any:
            if self is not module:
                return original(self, *args, **options)
            calls.append(1)
            with jax.named_scope(name):
                return original(self, *args, **options)

        try:
            kind.__call__ = called
        except TypeError:  # built-in classes cannot be changed, nor can that of functions
            raise ValueError(f"layer = {module!r} is no object of a class that can be named; {OTHERWISE}") from None
        try:
            yield name
        finally:
            if own:
                kind.__call__ = original
            else:
                del kind.__call__
    if not calls:
        raise ValueError(
            f"layer, a {kind.__name__} object, is not called while fn is traced: pass the object that fn calls itself, "
            f"not a copy, and fn without a `jit` that has been traced before; or {OTHERWISE}"
        )


class Patches(NamedTuple):
    """The output positions of the last convolution, and their place among the tokens.

    Attributes:
      grid: number of positions along each axis, such as rows and columns.
      first: number of tokens → index of the first position among them; None if it differs inside the network. A class
        token, a distillation token and registers come before the positions or after them.
      channels_first: whether the network's maps are `[D, H', W']`.
    """

    grid: tuple[int, ...]
    first: dict[int, int | None]
    channels_first: bool = False

    def is_map(self, shape: tuple[int, ...]) -> bool:
        """Return whether values have the grid's positions: `[*grid, D]`, or `[D, *grid]` if channels come first."""
        if len(shape) != len(self.grid) + 1 or (shape[1:] if self.channels_first else shape[:-1]) != self.grid:
            return False
        # `[1, D]` with as many features as positions is a pooled series, not one feature of each position.
        return not (self.channels_first and len(self.grid) == 1 and shape[0] == 1)


def default_layer(jaxpr: core.Jaxpr, axes: int = 2) -> core.Var:
    """Return the last feature map of a convolutional network or of a transformer over patches.

    The reference is the last convolution with an output larger than 1×1. In a convolutional network, the result is the
    last value with this output's height and width. It includes the normalization, residual sum and non-linearity after
    the convolution. In a transformer, the result is the last array of tokens that an attention mixes, because after it
    the logits may depend on the class token alone.

    Args:
      jaxpr: the network for one example.
      axes: number of axes of positions: 1 for series, 2 for images, 3 for volumes.

    Raises:
      ValueError: for a function without such a convolution, or with a last attention over other tokens than the
        convolution's positions and tokens added to them, such as merged patches or windows; and for a function with
        several outputs or with maps as output, whose last feature map may be the output itself.
    """
    outputs = [_shape(v, axes) for v in jaxpr.outvars]
    if len(outputs) != 1 or len(outputs[0]) > 1:
        listed = ", ".join(map(str, outputs))
        raise ValueError(
            f"fn returns arrays of shape {listed}: its last feature map may be such an output itself. Name the layer "
            f"to explain, layer=, or {OTHERWISE}"
        )
    equations, patches = _between(jaxpr), patches_of(jaxpr, axes)
    if patches is None:
        wanted = {1: "[T', D]", 2: "[H', W', D]", 3: "[D', H', W', D]"}.get(axes, f"of {axes} axes of positions")
        raise ValueError(f"the function has no convolution with an output {wanted}: name a layer, or {OTHERWISE}")
    values = [v for equation in equations if equation.primitive.name not in _LAYOUT for v in _written(equation)]
    last_map = [v for v in values if patches.is_map(_shape(v, axes))][-1]
    behind = values[values.index(last_map) + 1 :]
    mixed = _mixed_last(equations, patches, set(behind))
    of_tokens = [
        v for v in behind if len(_tokens(v)) == 2 and _tokens(v)[0] in patches.first and (not mixed or v in mixed)
    ]
    return of_tokens[-1] if of_tokens else last_map


def patches_in(fn: Callable, image: jax.Array) -> Patches | None:
    """Return the positions of the last convolution of a function, as `patches_of` does."""
    return patches_of(jax.make_jaxpr(interpret(fn, _enter))(image).jaxpr, image.ndim - 1)


def patches_of(jaxpr: core.Jaxpr, axes: int = 2) -> Patches | None:
    """Return the positions of the last convolution with an output larger than 1×1; None if there is none."""
    equations = _between(jaxpr)
    grids = [(i, grid) for i, equation in enumerate(equations) if (grid := _grid(equation, axes))]
    if not grids:
        return None
    (start, (grid, channels_first)), dependent = grids[-1], {v for equation in equations for v in equation.outvars}
    count = math.prod(grid)
    first = {count: 0}
    for equation in equations[start:]:
        tokens = _tokens_of_concatenation(equation, dependent) or _tokens_of_slice(equation)
        before, after, moved = tokens or (0, 0, 0)
        place = first.get(before)
        if place is not None and 0 <= place + moved <= after - count:
            first[after] = place + moved if first.get(after, place + moved) == place + moved else None
    return Patches(grid, first, channels_first)


def tokens_read(jaxpr: core.Jaxpr, layer: core.Var) -> frozenset[int] | None:
    """Return which tokens of a layer's output `[…, T, D]` the outputs depend on.

    It follows operations that treat each token by itself, such as a LayerNorm, up to slices of tokens. None if another
    operation reads the tokens.
    """
    count, found = layer.aval.shape[-2], set()
    axes = {layer: layer.aval.ndim - 2}
    for equation in _between(jaxpr):
        for value in _read(equation) & axes.keys():
            places = _sliced(equation, axes[value])
            axis = None if places else _axis_after(equation, value, axes[value], count)
            if places is None and axis is None:
                return None
            if places is None or len(places) == count:
                axes.update(dict.fromkeys(equation.outvars, axes[value] if places else axis))
            else:
                found.update(places)
    return None if axes.keys() & set(jaxpr.outvars) else frozenset(found)


def squeezed(shape: tuple[int, ...], axes: int = 2) -> tuple[int, ...]:
    """Return a shape without leading 1s: `axes + 1` axes are a map such as `[H', W', D]`, two are tokens `[T, D]`."""
    if axes > 1 and len(shape) == 3 and shape[0] == 1:
        return shape[1:]
    while len(shape) > axes + 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _between(jaxpr: core.Jaxpr) -> list[Any]:
    """Return the equations that depend on the image and that the logits depend on."""
    dependent, wanted = set(jaxpr.invars), set(jaxpr.outvars)
    for equation in jaxpr.eqns:
        if dependent & _read(equation):
            dependent.update(equation.outvars)
    found = []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(equation.outvars) and dependent & _read(equation):
            wanted |= _read(equation)
            found.append(equation)
    return found[::-1]


def _mixed_last(equations: list[Any], patches: Patches, behind: set[core.Var]) -> set[core.Var]:
    """Return the values from which both factors of the last attention, a product over tokens, are computed."""
    dependent = {v for equation in equations for v in equation.outvars}
    products = [e for e in equations if _contracted(e) > 1 and _read(e) <= dependent]
    over_tokens = [e for e in products if _contracted(e) in patches.first]
    if products and products[-1] not in over_tokens[-1:] and behind.intersection(products[-1].outvars):
        grid = "×".join(map(str, patches.grid))
        raise ValueError(
            f"the last product of two values that depend on the image, an attention maybe, sums over "
            f"{_contracted(products[-1])} elements, not over the {grid} positions of the last convolution and tokens "
            f"added to them: patches may have been merged, or divided into windows. Name the layer to explain, layer=, "
            f"and how its output is a map [H', W', D], reshape=; or {OTHERWISE}"
        )
    return set.intersection(*(_origins(v, equations) for v in _read(over_tokens[-1]))) if over_tokens else set()


def _tokens_of_concatenation(equation: Any, dependent: set[core.Var]) -> tuple[int, int, int] | None:
    """Return the number of tokens before and after a concatenation with constants, and their shift; else None."""
    if equation.primitive.name != "concatenate" or len(own := _read(equation) & dependent) != 1:
        return None
    (value,), axis = own, equation.params["dimension"]
    place = equation.invars.index(value)
    moved = sum(atom.aval.shape[axis] for atom in equation.invars[:place])
    return value.aval.shape[axis], equation.outvars[0].aval.shape[axis], moved


def _tokens_of_slice(equation: Any) -> tuple[int, int, int] | None:
    """Return the number of tokens before and after a slice along one axis, and their shift; else None."""
    if equation.primitive.name != "slice" or equation.params["strides"] is not None:
        return None
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    cut = [i for i in range(len(before)) if before[i] != after[i]]
    return (before[cut[0]], after[cut[0]], -equation.params["start_indices"][cut[0]]) if len(cut) == 1 else None


def _origins(value: core.Var, equations: list[Any]) -> set[core.Var]:
    """Return the values from which `equations` compute `value`, and `value` itself."""
    found, wanted = set(), {value}
    for equation in reversed(equations):
        if wanted.intersection(equation.outvars):
            wanted |= _read(equation)
            found.update(equation.outvars)
    return found


def _full_path(name: str, equations: list[Any]) -> str:
    """Return the path of scopes that is `name` or ends with it; raise ValueError unless there is exactly one."""
    paths = list(dict.fromkeys(path for equation in equations for path in _paths(equation)))
    fitting = [path for path in paths if path == name] or [path for path in paths if path.endswith(f"/{name}")]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(f"layer = {name!r} is ambiguous: it may be {' or '.join(map(repr, fitting))}")
    if not paths:
        hint = f"add one, pass the module itself (Flax NNX: layer=model.conv2), or {OTHERWISE}"
        raise ValueError(f"layer = {name!r}: the function has no jax.named_scope; {hint}")
    ends = {path: path for path in paths} | {path.rsplit("/", 1)[-1]: path for path in paths}
    close = [ends[end] for end in difflib.get_close_matches(name, ends, n=3)]
    hint = f"; did you mean {' or '.join(map(repr, dict.fromkeys(close)))}?" if close else "."
    closed = sorted({kind_of(e) for e in equations} & set(_CLOSED))
    inside = f" Layers inside {' or '.join(closed)} cannot be named: {OTHERWISE}." if closed else ""
    raise ValueError(f"layer = {name!r} is no scope of the function{hint}{inside} Its scopes are: {', '.join(paths)}")


def _paths(equation: Any) -> list[str]:
    """Return the paths of an equation's scope and of all scopes around it, the outermost first."""
    names = scope_of(equation).split("/")
    return ["/".join(names[: i + 1]) for i in range(len(names)) if names[0]]


def _read(equation: Any) -> set[core.Var]:
    return {atom for atom in equation.invars if not isinstance(atom, core.Literal)}


def _written(equation: Any) -> list[core.Var]:
    return [v for v in equation.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating)]


def _shape(value: core.Var, axes: int) -> tuple[int, ...]:
    return squeezed(value.aval.shape, axes)


def _tokens(value: core.Var) -> tuple[int, ...]:
    """Return a shape without leading 1s down to two axes."""
    return squeezed(value.aval.shape, 1)


def _grid(equation: Any, axes: int) -> tuple[tuple[int, ...], bool] | None:
    """Return the positions of a convolution's output for one example, and whether its channels come before them.

    None for a single position and for any other equation.
    """
    if equation.primitive is not lax.conv_general_dilated_p:
        return None
    shape, (batch, channel, *places) = equation.outvars[0].aval.shape, equation.params["dimension_numbers"].out_spec
    grid = tuple(shape[place] for place in places)
    ordered = places == list(range(places[0], places[0] + axes)) and shape[batch] == 1
    return (grid, channel < places[0]) if ordered and len(places) == axes and math.prod(grid) > 1 else None


def _sliced(equation: Any, axis: int) -> range | None:
    """Return the indices along an axis that a slice takes; None for any other equation."""
    if equation.primitive.name != "slice":
        return None
    strides = equation.params["strides"]
    limits = equation.params["start_indices"][axis], equation.params["limit_indices"][axis]
    return range(*limits, 1 if strides is None else strides[axis])


def _axis_after(equation: Any, value: core.Var, axis: int, count: int) -> int | None:
    """Return the axis of the tokens after an operation on each token by itself; None for any other operation."""
    name, params, shape = kind_of(equation), equation.params, value.aval.shape
    result = equation.outvars[0].aval.shape
    if name in ELEMENTWISE or is_elementwise_call(equation):
        return axis if len(result) == len(shape) and result[axis] == count else None  # other axes may be broadcast
    if name.startswith("reduce_") and "axes" in params:
        return None if axis in params["axes"] else axis - sum(other < axis for other in params["axes"])
    if name == "broadcast_in_dim":
        after = params["broadcast_dimensions"][axis]
        return after if result[after] == count else None
    if name == "transpose":
        return params["permutation"].index(axis)
    if name == "squeeze":
        return axis - sum(other < axis for other in params["dimensions"])
    if name == "reshape":
        before = math.prod(shape[:axis])
        fitting = [i for i, size in enumerate(result) if size == count and math.prod(result[:i]) == before]
        return fitting[0] if fitting else None
    if name == "dot_general":
        place = 0 if equation.invars[0] is value else 1
        contracted, batched = (pairs[place] for pairs in params["dimension_numbers"])
        if axis in contracted or axis in batched or equation.invars[1 - place] is value:
            return None
        other = equation.invars[1 - place].aval.ndim - len(contracted) - len(batched) if place else 0
        return len(batched) + other + sum(i not in (*contracted, *batched) for i in range(axis))
    return None


def _contracted(equation: Any) -> int:
    """Return the number of elements that a product sums over; 0 for any other equation."""
    if equation.primitive is not lax.dot_general_p:
        return 0
    (axes, _), _ = equation.params["dimension_numbers"]
    return math.prod(equation.invars[0].aval.shape[axis] for axis in axes)


# A named scope, a module that `fn` calls (such as an `nnx.Module`), a pair of functions (image -> activation,
# activation -> logits [K]), or None for `default_layer`.
Layer = str | Callable[..., Any] | tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]] | None


def activation_and_gradient(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    layer: Layer = None,
    *,
    saliency_of: str = "logit",
) -> tuple[jax.Array, jax.Array]:
    """Return a layer's output for one image, and the gradient of the target's score with respect to this output.

    Cost: one forward evaluation, and the backward evaluation down to the layer.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: the class to explain, a `Contrast` of two classes, or a function of the logits.
      layer: a named scope such as "ResNet/stage3/block1", or an unambiguous end of its path ("conv2"). Or a module that
        `fn` calls, such as `model.conv2` of a Flax NNX `model`, which names no scopes: see `scoped`. Or a pair
        `(features_fn, head_fn)`, used instead of `fn`. A layer that is called several times has the output of its last
        call. Default: see `default_layer`.
      saliency_of: score of the target: "logit", "log_probability" or "probability".

    Returns:
      Activation and gradient, in the shape that the layer has inside `fn`.

    Raises:
      ValueError: for an unknown or ambiguous layer; the message lists the choices.
    """
    activation, gradient, _ = layer_and_patches(fn, image, target, layer, saliency_of=saliency_of)
    return activation, gradient


class Split(NamedTuple):
    """A network that is split at a layer.

    Attributes:
      activation: the layer's output for one example, in the shape that it has inside the network.
      head: function from the layer's output to the network's output.
      patches: the network's patches; None if these are unknown.
      read: function that returns `tokens_read` of the layer; None if the layer is given by a pair of functions.
    """

    activation: jax.Array
    head: Callable[[jax.Array], Any]
    patches: Patches | None
    read: Callable[[], frozenset[int] | None] | None


def split_at(fn: Callable[[jax.Array], Any], image: jax.Array, target: Target, layer: Layer) -> Split:
    """Split a network at a layer: see `activation_and_gradient` for the arguments.

    The part before the layer is evaluated once; `head` evaluates the rest.

    Raises:
      ValueError: for an unknown layer, and a network that returns no logits although the target is a class.
    """
    if isinstance(layer, tuple):
        features_fn, head_fn = layer
        return Split(features_fn(image), head_fn, None, None)
    checked = fn if is_function(target) else lambda x: checked_logits(fn(x))
    flat, output, tree = _flat_and_layer(checked, image, layer)
    equations = flat.jaxpr.eqns
    end = next(i for i, equation in enumerate(equations) if output in equation.outvars) + 1
    before = values_of(flat, [image])
    run_equations(equations[:end], before, _as_usual)

    def head(activation: jax.Array) -> Any:
        values = before | {output: activation}
        run_equations(equations[end:], values, _as_usual)
        return jax.tree.unflatten(tree, [value_of(values, atom) for atom in flat.jaxpr.outvars])

    return Split(before[output], head, patches_of(flat.jaxpr, image.ndim - 1), partial(tokens_read, flat.jaxpr, output))


def layer_and_patches(
    fn: Callable[[jax.Array], Any], image: jax.Array, target: Target, layer: Layer, *, saliency_of: str
) -> tuple[jax.Array, jax.Array, Split]:
    """Return the results of `activation_and_gradient`, and the network split at the layer."""
    split = split_at(fn, image, target, layer)
    return split.activation, jax.grad(score_of(split.head, target, saliency_of=saliency_of))(split.activation), split


def as_map(activation: jax.Array, image_shape: tuple[int, ...], patches: Patches | None = None) -> jax.Array:
    """Return an activation as `[H', W', D]`, without leading axes of size 1.

    Of a series or a volume the map has one or three axes of positions instead of two. Channels come last in the result
    also for a channels-first network, if `patches` says so.

    Tokens `[T, D]` are laid out as the positions of the last convolution if `patches` holds their number; added tokens
    (a class token, registers) are removed. Otherwise tokens count as square patches of the image, and a class token is
    removed. Patches at the border may be padded or cut off if only one grid has that number of patches. `[1, T, D]`
    counts as tokens.

    Raises:
      ValueError: for an activation that is neither a map nor tokens with one such grid.
    """
    sides = image_shape[:-1]
    values = activation.reshape(squeezed(activation.shape, len(sides)))
    known = patches is not None and values.ndim == 2 and len(values) in patches.first
    known = known and not patches.is_map(values.shape)  # of a series, which has two axes as tokens do
    if values.ndim == len(sides) + 1 and not known:
        values = jnp.moveaxis(values, 0, -1) if patches is not None and patches.channels_first else values
        if len(sides) > 1 and sides[0] < values.shape[0] and sides[-1] > values.shape[1]:
            raise ValueError(
                f"the layer's map has shape {values.shape}, larger than an image {image_shape} [H, W, C]: pass images "
                "with channels last; of a channels-first network explain lambda x: fn(jnp.moveaxis(x, -1, 0))"
            )
        return values
    if values.ndim == 2:
        tokens = len(values)
        grid = patches.grid if known else _grid_of(tokens, *sides) if len(sides) == 2 else None
        if grid is not None:
            first = patches.first[tokens] if known else tokens - math.prod(grid)
            if first is not None:
                return values[first : first + math.prod(grid)].reshape(*grid, values.shape[-1])
    raise ValueError(
        f"the layer's output has shape {activation.shape}, neither a map [H', W', D] nor tokens [T, D] that are the "
        f"patches of an image of {'×'.join(map(str, sides))} in one way: pass reshape, a function from it to "
        "[H', W', D]"
    )


def _flat_and_layer(fn: Callable, image: jax.Array, layer: Layer) -> tuple[core.ClosedJaxpr, core.Var, Any]:
    """Return the jaxpr of `fn` with calls inlined, the variable that is the layer's output, and the output's tree."""
    named, fresh = layer is None or isinstance(layer, str), lambda x: fn(x)  # JAX would reuse an earlier trace of `fn`
    with contextlib.nullcontext(layer) if named else scoped(layer) as name:
        flat, shapes = jax.make_jaxpr(interpret(fresh, _enter), return_shape=True)(image)
    output = default_layer(flat.jaxpr, image.ndim - 1) if name is None else named_layer(flat.jaxpr, name)
    return flat, output, jax.tree.structure(shapes)


def _grid_of(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Return rows and columns of the patches that `tokens` tokens stand for; None unless one grid fits."""
    for patches in (tokens, tokens - 1):  # without and with a class token
        rows = max(1, round(math.sqrt(patches * height / width)))
        if patches > 1 and patches % rows == 0 and rows * rows * width == patches * height:
            return rows, patches // rows
    cut_off, padded = (
        {(rounded(height / size), rounded(width / size)) for size in range(2, max(height, width))}
        for rounded in (math.floor, math.ceil)
    )
    fitting = [grid for grid in cut_off | padded if 1 < math.prod(grid) and math.prod(grid) in (tokens, tokens - 1)]
    return fitting[0] if len(fitting) == 1 else None


def _as_usual(equation: Any, inputs: list[jax.Array], scope: str) -> None:
    """Let every equation be evaluated as usual."""


def _enter(equation: Any, inputs: list[jax.Array], scope: str) -> list[jax.Array] | None:
    """Enter called functions, `checkpoint` included, so that their inner values can be read."""
    inner = called(equation)
    return None if inner is None else run(inner, inputs, _enter, scope)
