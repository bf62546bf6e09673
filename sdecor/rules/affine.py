"""Affine layers of a program: a linear map with constant weights, and the constants added and multiplied after it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core.arrays import at_least_float32
from sdecor.rules.patterns import is_linear
from sdecor.rules.program import SUMS, Program, Step, Value

_KERNEL_LAYERS = ("conv_general_dilated", "dot_general")
_ADDING = ("add", "add_any", "sub")
_SCALING = ("convert_element_type", "copy", "div", "mul", "neg")
_MOVING = ("broadcast_in_dim", "expand_dims", "reshape", "squeeze", "transpose")


class Affine(NamedTuple):
    """The steps of an affine layer.

    Attributes:
      base: the convolution, matrix product or sum; None for a chain alone.
      chain: the elementwise steps with constants after it: biases, and a BatchNorm's scale and shift. Steps between
        them may transpose axes, and add or remove axes of length 1.
      end: the last step.
    """

    base: Step | None
    chain: tuple[Step, ...]
    end: Step

    @property
    def root(self) -> Value:
        """The layer's input."""
        return (self.base or self.chain[0]).dependent[0]

    @property
    def has_kernel(self) -> bool:
        return self.base is not None and self.base.name in _KERNEL_LAYERS

    @property
    def adds(self) -> bool:
        """Return whether the layer sums values or adds a constant; a scale alone does neither."""
        return self.base is not None or any(step.name in _ADDING for step in self.chain)

    def __call__(self, x: jax.Array) -> jax.Array:
        for step in (*((self.base,) if self.base else ()), *self.chain):
            (x,) = step(x)
        return x

    def weights(self) -> tuple[jax.Array, jax.Array, Callable[[jax.Array, jax.Array], jax.Array]]:
        """Return the kernel with all scales in it, the shift and `linear(x, kernel)`: the layer is `linear + shift`."""
        place, kernel_axes, _ = _features(self.base)
        kernel, output = self.base.inputs[place], self.base.outputs[0]
        scale = jnp.ones([1] * kernel.ndim, at_least_float32(kernel.dtype))
        shift = jnp.zeros(output.shape, output.dtype)
        for step, axes in zip(self.chain, _feature_axes(self.base, self.chain), strict=True):
            (shift,) = step(shift)
            factor = _factor(step, kernel.ndim, dict(zip(kernel_axes, axes, strict=True)))
            scale = scale * jnp.asarray(factor, scale.dtype)

        def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
            inputs = [kernel if i == place else given for i, given in enumerate(self.base.inputs)]
            (y,) = self.base._replace(inputs=tuple(inputs))(x)
            for step in self.chain:
                (y,) = step(y) if step.name in _MOVING else (y,)
            return y.astype(shift.dtype)

        return (kernel.astype(scale.dtype) * scale).astype(kernel.dtype), shift, linear

    def added(self, linear: Callable, parts: Sequence[jax.Array], kernels: Sequence[jax.Array]) -> jax.Array:
        """Return the sum of `linear(part, kernel)` over pairs, where possible as one layer on concatenated inputs."""
        axes = self._summed_axes()
        if axes is None:
            return sum(map(linear, parts, kernels))
        return linear(*(jnp.concatenate(arrays, axis) for arrays, axis in zip((parts, kernels), axes, strict=True)))

    def _summed_axes(self) -> tuple[int, int] | None:
        """Return an axis of the input and the axis of the kernel that it is contracted with; None if there are none."""
        numbers = self.base.params["dimension_numbers"]
        if self.base.name == "conv_general_dilated":
            groups = self.base.params["feature_group_count"] * self.base.params["batch_group_count"]
            return (numbers.lhs_spec[1], numbers.rhs_spec[1]) if groups == 1 else None
        place, _, _ = _features(self.base)
        of_part, of_kernel = numbers[0][1 - place], numbers[0][place]
        return (of_part[0], of_kernel[0]) if of_part else None


def affine_layer(program: Program, step: Step) -> Affine | None:
    """Return the affine layer that ends with `step`; None if there is none."""
    chain, maker = [], step
    while maker is not None and _extends(maker):
        chain.append(maker)
        maker = program.made_by.get(maker.dependent[0])
    chain = chain[::-1]
    base = maker if maker is not None and is_linear(maker) and maker.name in (*_KERNEL_LAYERS, *SUMS) else None
    if base is not None and base.name in _KERNEL_LAYERS:
        if base.name == "conv_general_dilated" and not isinstance(base.inputs[0], Value):
            base = None
        else:
            # A factor that varies over positions is no part of the kernel: the layer with the kernel ends before it.
            axes = _feature_axes(base, chain)
            apart = [i for i, step in enumerate(chain) if not _is_of_features(step, axes[i])]
            if apart:
                base, chain = None, chain[apart[-1] + 1 :] or chain[-1:]
    return Affine(base, tuple(chain), step) if base is not None or chain else None


def _extends(step: Step) -> bool:
    if len(step.dependent) != 1 or not is_linear(step):
        return False
    before, after = step.dependent[0].shape, step.outputs[0].shape
    if step.name in _MOVING:
        return step.name == "transpose" or [before[i] for i in _long(before)] == [after[i] for i in _long(after)]
    return step.name in _ADDING + _SCALING and before == after


def _long(shape: tuple[int, ...]) -> list[int]:
    """Return the axes with more than one element."""
    return [i for i, n in enumerate(shape) if n != 1]


def _feature_axes(base: Step, chain: Sequence[Step]) -> list[tuple[int | None, ...]]:
    """Return the kernel's feature axes in the input of each step; None for an axis of length 1 after reshaping."""
    _, _, axes = _features(base)
    found = []
    for step in chain:
        found.append(axes)
        if step.name in _MOVING:
            before, after = _long(step.dependent[0].shape), _long(step.outputs[0].shape)
            if step.name == "transpose":
                before, after = step.params["permutation"], range(len(step.outputs[0].shape))
            moved = dict(zip(before, after, strict=True))
            axes = tuple(moved.get(axis) for axis in axes)
    return found


def _is_of_features(step: Step, axes: tuple[int | None, ...]) -> bool:
    """Return whether a step's factor, if it has one, varies only along the feature axes `axes`."""
    return step.name not in ("mul", "div") or set(_long(np.shape(_constant(step)))) <= set(axes)


def _factor(step: Step, rank: int, places: dict[int, int | None]) -> Any:
    """Return a step's factor on a kernel with `rank` axes; `places` maps the kernel's feature axes to the step's."""
    if step.name not in ("mul", "div"):
        return -1 if step.name == "neg" or (step.name == "sub" and isinstance(step.inputs[1], Value)) else 1
    factor = jnp.asarray(_constant(step))
    if factor.ndim:
        sizes = [1 if places.get(i) is None else factor.shape[places[i]] for i in range(rank)]
        shown = [axis for axis in places.values() if axis is not None]
        factor = factor.transpose(shown + [i for i in range(factor.ndim) if i not in shown]).reshape(sizes)
    return 1 / factor if step.name == "div" else factor


def _constant(step: Step) -> Any:
    return next(x for x in step.inputs if not isinstance(x, Value))


def _features(base: Step) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Return the kernel's position among the inputs, and its feature axes in the kernel and in the output."""
    numbers = base.params["dimension_numbers"]
    if base.name == "conv_general_dilated":
        return 1, (numbers.rhs_spec[0],), (numbers.out_spec[1],)
    place = 1 if isinstance(base.inputs[0], Value) else 0
    (contracted, batch), rank = (axes[place] for axes in numbers), np.ndim(base.inputs[place])
    free = tuple(i for i in range(rank) if i not in (*contracted, *batch))
    first = len(base.outputs[0].shape) - len(free) if place else len(batch)
    return place, free, tuple(range(first, first + len(free)))
