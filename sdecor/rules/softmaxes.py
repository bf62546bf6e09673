"""Recognition of softmaxes in a program, with subtracted maxima, masks and casts."""

from typing import Any, NamedTuple

from sdecor.rules.patterns import RESHAPING
from sdecor.rules.program import ROUTING, Program, Step, Value

_CASTING = ("convert_element_type", "copy", "copy_p", "name", "optimization_barrier")
_MASKING = ("mul", "select_n")
_STABLE = ("abs", "add", "max")  # with a constant, they keep a sum from being 0
_SUMMED = (*RESHAPING, *_CASTING, *_STABLE)
_WEIGHTS = (*_CASTING, *_MASKING)
# Operations that only arrange the elements of one value.
_ARRANGING = ROUTING - {"concatenate", "dynamic_update_slice", "pad", "scatter", "stack", "tile"}


class Softmax(NamedTuple):
    """A softmax `exp(u) / Σ exp(u)`, a logarithm `log Σ exp(u)`, or their difference `u − log Σ exp(u)`.

    Attributes:
      output: the weights, or the logarithm.
      axes: the axes of u that are summed over.
      steps: the outputs of all steps from u to `output`. They include the subtraction of a value that is the same for
        all elements of a sum, such as the maximum.
    """

    output: Value
    axes: tuple[int, ...]
    steps: frozenset[Value]


def softmax_weights(program: Program) -> list[Softmax]:
    """Return the softmaxes `exp(u) / Σ exp(u)` of a program, in order."""
    found = (_weights(program, step) for step in program.steps if step.name == "div" and len(step.dependent) == 2)
    return [softmax for softmax in found if softmax is not None]


def log_sums(program: Program) -> list[Softmax]:
    """Return the logarithms `log Σ exp(u)` of a program, each with the log-softmax `u − log Σ exp(u)`, in order."""
    found = (_logarithm(program, step) for step in program.steps if step.name == "log" and len(step.dependent) == 1)
    return [softmax for softmax in found if softmax is not None]


def arranged(program: Program, value: Value) -> Value:
    """Return the value of which `value` is another arrangement, a cast, a multiple or a part."""
    _, passed = _behind(program, value, (*_WEIGHTS, *_ARRANGING))
    return passed[-1].dependent[0] if passed else value


def _weights(program: Program, step: Step) -> Softmax | None:
    above, passed = _behind(program, step.inputs[0], _WEIGHTS)
    total, of_total = _behind(program, step.inputs[1], _SUMMED)
    return _softmax(program, step, above, total, [*passed, *of_total])


def _logarithm(program: Program, step: Step) -> Softmax | None:
    total, passed = _behind(program, step.inputs[0], _SUMMED)
    if total is None or total.name != "reduce_sum":
        return None
    exponential, _ = _behind(program, total.inputs[0], _WEIGHTS)
    found = _softmax(program, step, exponential, total, passed)
    if found is None:
        return None
    u = exponential.dependent[0]
    for other in program.steps:
        if other.name == "sub" and len(other.dependent) == 2 and other.inputs[0] == u:
            maker, between = _behind(program, other.inputs[1], (*RESHAPING, *_CASTING))
            if maker is not None and maker.outputs == step.outputs:
                found = found._replace(steps=found.steps | _outputs([other, *between]))
    return found


def _softmax(
    program: Program, step: Step, above: Step | None, total: Step | None, passed: list[Step]
) -> Softmax | None:
    """Return the softmax with the exponential `above` and the sum `total` of the same exponential."""
    if above is None or above.name != "exp" or total is None or total.name != "reduce_sum":
        return None
    below, of_below = _behind(program, total.inputs[0], _WEIGHTS)
    same = below is not None and len({program.first.get(x, x) for x in (*above.outputs, *below.outputs)}) == 1
    if not same:
        return None
    axes = tuple(int(axis) for axis in total.params["axes"])
    steps = [step, total, above, below, *passed, *of_below]
    for exponent in {above.dependent[0], below.dependent[0]}:
        made = program.made_by.get(exponent)
        while made is not None and _is_shift(program, made, axes):
            steps.append(made)
            made = program.made_by.get(made.inputs[0])
    return Softmax(step.outputs[0], axes, _outputs(steps))


def _is_shift(program: Program, step: Step, axes: tuple[int, ...]) -> bool:
    """Return whether a step subtracts the same number from all elements along `axes`."""
    if step.name != "sub" or len(step.dependent) != 2 or step.inputs[0].shape != step.outputs[0].shape:
        return False
    shift = step.inputs[1]
    if all(shift.shape[axis] == 1 for axis in axes):
        return True
    spread, _ = _behind(program, shift, ("stop_gradient",))
    if spread is None or spread.name != "broadcast_in_dim":
        return False
    places, before = spread.params["broadcast_dimensions"], spread.dependent[0].shape
    return all(before[i] == 1 for i, axis in enumerate(places) if axis in axes)


def _behind(program: Program, value: Any, passing: tuple[str, ...]) -> tuple[Step | None, list[Step]]:
    """Return the nearest step before `value` that is not `passing`, and the passing steps on the way."""
    made, passed = program.made_by.get(value) if isinstance(value, Value) else None, []
    while made is not None and made.name in passing and len(made.dependent) == 1 and not _chooses(made):
        passed.append(made)
        made = program.made_by.get(made.dependent[0])
    return made, passed


def _chooses(step: Step) -> bool:
    """Return whether a step selects by a condition that depends on the input."""
    return step.name == "select_n" and isinstance(step.inputs[0], Value)


def _outputs(steps: list[Step]) -> frozenset[Value]:
    return frozenset(value for step in steps for value in step.outputs)
