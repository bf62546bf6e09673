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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from sdecor.attribution.canonical import canonical
from sdecor.attribution.targets import Target, checked_logits, score_of, target_score
from sdecor.core.jaxpr import called, evaluate, interpret, kind_of, run, scope_of

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
      grid: numbers of rows and columns.
      first: number of tokens → index of the first position among them; None if it differs inside the network. A class
        token, a distillation token and registers come before the positions or after them.
    """

    grid: tuple[int, int]
    first: dict[int, int | None]


def default_layer(jaxpr: core.Jaxpr) -> core.Var:
    """Return the last feature map of a convolutional network or of a transformer over patches.

    The reference is the last convolution with an output larger than 1×1. In a convolutional network, the result is the
    last value with this output's height and width. It includes the normalization, residual sum and non-linearity after
    the convolution. In a transformer, the result is the last array of tokens that an attention mixes, because after it
    the logits may depend on the class token alone.

    Raises:
      ValueError: for a function without such a convolution, or with a last attention over other tokens than the
        convolution's positions and tokens added to them, such as merged patches or windows.
    """
    equations, patches = _between(jaxpr), patches_of(jaxpr)
    if patches is None:
        raise ValueError(f"the function has no convolution with an output [H', W', D]: name a layer, or {OTHERWISE}")
    values = [v for equation in equations if equation.primitive.name not in _LAYOUT for v in _written(equation)]
    last_map = [v for v in values if len(_shape(v)) == 3 and _shape(v)[:2] == patches.grid][-1]
    behind = values[values.index(last_map) + 1 :]
    mixed = _mixed_last(equations, patches, set(behind))
    of_tokens = [
        v for v in behind if len(_shape(v)) == 2 and _shape(v)[0] in patches.first and (not mixed or v in mixed)
    ]
    return of_tokens[-1] if of_tokens else last_map


def patches_in(fn: Callable, image: jax.Array) -> Patches | None:
    """Return the positions of the last convolution of a function, as `patches_of` does."""
    return patches_of(jax.make_jaxpr(interpret(fn, _enter))(image).jaxpr)


def patches_of(jaxpr: core.Jaxpr) -> Patches | None:
    """Return the positions of the last convolution with an output larger than 1×1; None if there is none."""
    equations = _between(jaxpr)
    grids = [(i, grid) for i, grid in enumerate(map(_grid, equations)) if grid]
    if not grids:
        return None
    (start, grid), dependent = grids[-1], {v for equation in equations for v in equation.outvars}
    count = math.prod(grid)
    first = {count: 0}
    for equation in equations[start:]:
        tokens = _tokens_of_concatenation(equation, dependent) or _tokens_of_slice(equation)
        before, after, moved = tokens or (0, 0, 0)
        place = first.get(before)
        if place is not None and 0 <= place + moved <= after - count:
            first[after] = place + moved if first.get(after, place + moved) == place + moved else None
    return Patches(grid, first)


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without leading 1s: three axes are a map `[H', W', D]`, two are tokens `[T, D]`."""
    if len(shape) == 3 and shape[0] == 1:
        return shape[1:]
    while len(shape) > 3 and shape[0] == 1:
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


def _shape(value: core.Var) -> tuple[int, ...]:
    return squeezed(value.aval.shape)


def _grid(equation: Any) -> tuple[int, int] | None:
    """Return height and width of a convolution's output `[H', W', D]`; None for 1×1 and for any other equation."""
    if equation.primitive is not lax.conv_general_dilated_p:
        return None
    output = equation.outvars[0]
    channels_last = equation.params["dimension_numbers"].out_spec[1] == output.aval.ndim - 1
    grid = _shape(output)[:2]
    return grid if channels_last and len(_shape(output)) == 3 and math.prod(grid) > 1 else None


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


def layer_and_patches(
    fn: Callable[[jax.Array], jax.Array], image: jax.Array, target: Target, layer: Layer, *, saliency_of: str
) -> tuple[jax.Array, jax.Array, Patches | None]:
    """Return the results of `activation_and_gradient` and the network's patches, None if these are unknown."""
    if isinstance(layer, tuple):
        features_fn, head_fn = layer
        activation = features_fn(image)
        return activation, jax.grad(score_of(head_fn, target, saliency_of=saliency_of))(activation), None
    flat, output = _flat_and_layer(lambda x: checked_logits(fn(x)), image, layer)

    def perturbed(perturbation: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen = []

        def perturb(equation: Any, inputs: list[jax.Array], scope: str) -> list[jax.Array] | None:
            if output not in equation.outvars:
                return None
            values, place = evaluate(equation, inputs, None, scope), equation.outvars.index(output)
            seen.append(values[place])
            values[place] += perturbation
            return values

        (logits,) = run(flat, [image], perturb)
        return logits, seen[0]

    def score(perturbation: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, activation = canonical(perturbed)(perturbation)
        return target_score(logits, target, saliency_of=saliency_of), activation

    gradient, activation = jax.grad(score, has_aux=True)(jnp.zeros(output.aval.shape, output.aval.dtype))
    return activation, gradient, patches_of(flat.jaxpr)


def as_map(activation: jax.Array, image_shape: tuple[int, ...], patches: Patches | None = None) -> jax.Array:
    """Return an activation as `[H', W', D]`, without leading axes of size 1.

    Tokens `[T, D]` are laid out as the positions of the last convolution if `patches` holds their number; added tokens
    (a class token, registers) are removed. Otherwise tokens count as square patches of the image, and a class token is
    removed. Patches at the border may be padded or cut off if only one grid has that number of patches. `[1, T, D]`
    counts as tokens.

    Raises:
      ValueError: for an activation that is neither a map nor tokens with one such grid.
    """
    values = activation.reshape(squeezed(activation.shape))
    if values.ndim == 3:
        return values
    if values.ndim == 2:
        tokens, known = len(values), patches is not None and len(values) in patches.first
        grid = patches.grid if known else _grid_of(tokens, *image_shape[:2])
        if grid is not None:
            first = patches.first[tokens] if known else tokens - math.prod(grid)
            if first is not None:
                return values[first : first + math.prod(grid)].reshape(*grid, values.shape[-1])
    height, width = image_shape[:2]
    raise ValueError(
        f"the layer's output has shape {activation.shape}, neither a map [H', W', D] nor tokens [T, D] that are the "
        f"patches of an image of {height}×{width} in one way: pass reshape, a function from it to [H', W', D]"
    )


def _flat_and_layer(fn: Callable, image: jax.Array, layer: Layer) -> tuple[core.ClosedJaxpr, core.Var]:
    """Return the jaxpr of `fn` with calls inlined, and the variable that is the layer's output."""
    if layer is None or isinstance(layer, str):
        flat = jax.make_jaxpr(interpret(fn, _enter))(image)
        return flat, default_layer(flat.jaxpr) if layer is None else named_layer(flat.jaxpr, layer)
    with scoped(layer) as name:
        flat = jax.make_jaxpr(interpret(fn, _enter))(image)
    return flat, named_layer(flat.jaxpr, name)


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


def _enter(equation: Any, inputs: list[jax.Array], scope: str) -> list[jax.Array] | None:
    """Enter called functions, `checkpoint` included, so that their inner values can be read."""
    inner = called(equation)
    return None if inner is None else run(inner, inputs, _enter, scope)
