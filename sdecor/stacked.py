"""Several replicas as one: every array of their states with a leading axis `[R, …]`, the step count shared."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sdecor.state import TrainState


def lift(step: Callable) -> Callable:
    """Lift `step(state, batch, hyper, key) -> (state, terms)` over replicas; collectives stay among the devices.

    All arguments and results get the leading axis `[R]`, apart from the state's step.
    """

    def lifted(state: TrainState, batch: Any, hyper: Any, key: jax.Array) -> tuple[TrainState, Any]:
        axes = _axes(state)
        return jax.vmap(step, in_axes=(axes, 0, 0, 0), out_axes=(axes, 0))(state, batch, hyper, key)

    return lifted


def _axes(state: TrainState) -> TrainState:
    return jax.tree.map(lambda _: 0, state).replace(step=None)


def stack(trees: Sequence[Any], axis: int = 0) -> Any:
    """Stack trees of NumPy arrays along a new axis."""
    return jax.tree.map(lambda *arrays: np.stack(arrays, axis), *trees)


def stack_states(states: Sequence[TrainState]) -> TrainState:
    """Stack states of the same step."""
    return stack(states).replace(step=np.asarray(states[0].step))


def unstack_state(state: TrainState) -> list[TrainState]:
    """Return the replicas' states of a stacked one, as copies on the host."""
    host = jax.tree.map(np.array, state)  # copied: the next step overwrites what a view would show
    arrays, structure = jax.tree.flatten(host.replace(step=None))
    # A scalar of an array would be a NumPy number, which no checkpoint takes.
    return [structure.unflatten(map(np.asarray, own)).replace(step=host.step) for own in zip(*arrays, strict=True)]


def rows(values: dict[str, np.ndarray], replicas: int | None) -> list[dict[str, float]]:
    """Return a row of named numbers for each replica, of arrays `[R]`; of scalars, for `replicas` None, one row."""
    chosen = [()] if replicas is None else range(replicas)
    return [{name: float(value[i]) for name, value in values.items()} for i in chosen]
