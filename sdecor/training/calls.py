"""Calls of the compiled program, each of which takes one step or several (`train.steps_per_call`).

A validation, a checkpoint by steps and the last step are always at the end of a call. So a run needs two programs at
most: one of `steps_per_call` steps, and one of a single step for the rest before such an end.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp

from sdecor.core import parallel
from sdecor.core.barrier import barrier
from sdecor.training import device_split, members
from sdecor.training.build import Schedule


def sizes(schedule: Schedule, start: int) -> Iterator[int]:
    """Yield the number of steps of each call from the step `start` to the last one."""
    step = start
    while step < schedule.total:
        count = schedule.steps_per_call if schedule.until_due(step) >= schedule.steps_per_call else 1
        yield count
        step += count


def describe(schedule: Schedule, start: int) -> str:
    """Return a text about the calls that are left, such as "12 of 32 steps, 6 of one step"."""
    found = collections.Counter(sizes(schedule, start))
    return ", ".join(f"{found[size]} of {name(size)}" for size in sorted(found, reverse=True))


def name(count: int) -> str:
    """Return a number of steps as text."""
    return "one step" if count == 1 else f"{count} steps"


def numbers(steps: range) -> str:
    """Return the numbers of a call's steps as text: "step 7" or "steps 5 to 8"."""
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


def create(
    step: Callable,
    count: int,
    *,
    replicas: int | None,
    split_of: Sequence[int] | None,
    devices: Sequence[jax.Device] | None = None,
) -> Callable:
    """Create the program of `count` steps for all members and devices.

    Args:
      step: the step of one member, on one device.
      count: number of steps.
      replicas: number of replicas; None for a single run.
      split_of: the shape of an image, if batches hold indices into a split on the devices, which then comes with
        `hyper`; None for batches of images.
      devices: devices to compile for; None for those here.
    """
    device = (devices or jax.devices())[0]
    step = members.lift(step, replicas)
    if split_of is not None:
        step = device_split.reading(step, split_of, device)
    return parallel.pmap_step(repeat(step, count, device), devices)


def repeat(step: Callable, count: int, device: jax.Device) -> Callable:
    """Return the program of `count` steps: `step(state, batch, hyper, key) -> (state, terms)`, one after the other.

    Its batch and its terms have a leading axis `[count]`; those of one step have none. On a CPU the steps are written
    out one after the other, because XLA's convolutions inside a loop are slow there and round in another way. Results
    are then those of single steps, bit for bit. On a GPU or TPU they are a loop, whose time of compiling does not
    depend on `count`.

    Args:
      step: the step, on one device.
      count: number of steps.
      device: a device that the program is compiled for.
    """
    if count == 1:
        return step
    return _unrolled(step, count) if is_unrolled(device) else _looped(step)


def is_unrolled(device: jax.Device) -> bool:
    """Return whether the steps of a call are written out for a device, instead of a loop."""
    return device.platform == "cpu"


def _looped(step: Callable) -> Callable:
    def loop(state: Any, batches: Any, hyper: Any, key: jax.Array) -> tuple[Any, Any]:
        return jax.lax.scan(lambda state, batch: step(state, batch, hyper, key), state, batches)

    return loop


def _unrolled(step: Callable, count: int) -> Callable:
    def unrolled(state: Any, batches: Any, hyper: Any, key: jax.Array) -> tuple[Any, Any]:
        found = []
        for i in range(count):
            given = barrier((state, jax.tree.map(itemgetter(i), batches)))
            state, terms = barrier(step(*given, hyper, key))
            found.append(terms)
        return state, jax.tree.map(lambda *each: jnp.stack(each), *found)

    return unrolled
