"""Devices and processes: the one file that names pmap, meshes and device placement.

A state has no device axis: it is replicated on the local devices. A batch has one, as its first axis. JAX keeps pmap in
maintenance and advises `jax.shard_map` for new code; a replacement of pmap changes this file only.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, reshard, use_abstract_mesh

from sdecor.core.checks import check_range

AXIS = "batch"  # the name that collectives in losses, BatchNorm and steps refer to


def automatic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function take arrays that are sharded over a mesh with Explicit axes, the default of `jax.make_mesh`.

    Inside the function these axes are Auto: the compiler places intermediate values, and no operation has to name a
    sharding. Results with one entry per example are sharded like the examples, all others are replicated. Arrays in a
    `jax.tree_util.Partial` count as arguments; arrays that another function closes over cannot be converted.
    """

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        sharded = [leaf for leaf in jax.tree.leaves((args, options)) if _is_explicit(leaf)]
        if not sharded:
            return function(*args, **options)
        mesh = jax.typeof(sharded[0]).sharding.mesh
        types = [AxisType.Auto if kind is AxisType.Explicit else kind for kind in mesh.axis_types]
        inside = mesh.update(axis_types=tuple(types))
        with use_abstract_mesh(inside):
            cast = functools.partial(_to_mesh, mesh=inside)
            try:
                results = function(*map(cast, args), **{name: cast(value) for name, value in options.items()})
            except ValueError as error:
                if "context mesh" in str(error):
                    error.add_note(_CLOSED_OVER)
                raise
        examples = next((leaf for leaf in sharded if any(jax.typeof(leaf).sharding.spec[:1])), None)
        return jax.tree.map(functools.partial(_placed, examples=examples, mesh=mesh), results)

    return call


_CLOSED_OVER = (
    "A function that closes over arrays on a mesh with Explicit axes cannot be called here: pass "
    "jax.tree_util.Partial(function, arrays), or put the arrays on a mesh with axis_types=(AxisType.Auto,)."
)


def _is_explicit(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types


def _to_mesh(tree: Any, *, mesh: Any) -> Any:
    """Return a tree with its sharded arrays on a mesh of other axis types; their data do not move."""
    if not any(map(_is_explicit, jax.tree.leaves(tree))):
        return tree  # the same object: a module is recognised by its identity
    anywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: reshard(leaf, anywhere) if _is_explicit(leaf) else leaf, tree)


def _placed(result: jax.Array, *, examples: jax.Array | None, mesh: Any) -> jax.Array:
    """Return a result on the mesh of the arguments, sharded like the examples if it has as many entries."""
    like = examples is not None and result.shape[:1] == examples.shape[:1]
    spec = PartitionSpec(jax.typeof(examples).sharding.spec[0]) if like else PartitionSpec()
    return reshard(result, NamedSharding(mesh, spec))


def is_main_process() -> bool:
    """Return whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Print in the main process only."""
    if is_main_process():
        print(text, flush=True)


def check_batch_size(field: str, batch_size: int, accumulate: int = 1, devices: int | None = None) -> None:
    """Raise `ValueError` unless each device gets the same whole number of examples; by default of all processes."""
    check_range(field, batch_size, 1)
    devices = devices or jax.device_count()
    parts = devices * accumulate
    if batch_size % parts:
        right = max(round(batch_size / parts), 1) * parts
        raise ValueError(
            f"{field} = {batch_size} does not divide over {devices} devices × {accumulate} micro-batches: "
            f"use a multiple of {parts}, for example {right}"
        )


def round_up(batch_size: int) -> int:
    """Return the next batch size that divides over all devices, for batches whose padding changes no result."""
    return -(-batch_size // jax.device_count()) * jax.device_count()


def replicate(tree: Any, devices: Iterable[jax.Device] | None = None) -> Any:
    """Put a copy of every array on every local device, where the compiled step expects it."""
    mesh = Mesh(np.array(list(devices or jax.local_devices())), (AXIS,))
    # Copied first: `device_put` shares arrays that are on a device already, and the step overwrites its state. One
    # program copies all: an operation of its own for each shape would compile one for each.
    leaves, structure = jax.tree.flatten(tree)
    copies = iter(_copy([leaf for leaf in leaves if isinstance(leaf, jax.Array)]))
    tree = structure.unflatten([next(copies) if isinstance(leaf, jax.Array) else leaf for leaf in leaves])
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()), may_alias=False)


@jax.jit
def _copy(arrays: list[jax.Array]) -> list[jax.Array]:
    return [jnp.copy(array) for array in arrays]


def shard(batch: Any, devices: int | None = None) -> Any:
    """Split the first axis `[n, …]` of every array over local devices, `[devices, n / devices, …]`."""
    count = devices or jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batch)


def shard_micro_batches(batches: list[Any], devices: int | None = None, *, steps: int = 1) -> Any:
    """Split each of the `m` micro-batches of each of some steps over devices: `[devices, steps, m, n / devices, …]`.

    The axes of `steps` and `m` are left out where there is only one. Each micro-batch is split by itself, so that its
    examples and their statistics are the same on any number of devices.
    """
    if len(batches) == 1:
        return shard(batches[0], devices)
    count = devices or jax.local_device_count()
    lengths = [length for length in (steps, len(batches) // steps) if length > 1]

    def stack(*xs: np.ndarray) -> np.ndarray:
        stacked = np.stack([x.reshape(count, x.shape[0] // count, *x.shape[1:]) for x in xs], axis=1)
        return stacked.reshape(count, *lengths, *stacked.shape[2:])

    return jax.tree.map(stack, *batches)


def pmap_step(step: Callable, devices: list[jax.Device] | None = None) -> Callable:
    """Compile `step(state, batch, hyper, key) -> (state, terms)` for all devices; the state is donated."""
    return jax.pmap(
        step, axis_name=AXIS, in_axes=(None, 0, None, None), out_axes=None, donate_argnums=0, devices=devices
    )


def lower_step(step: Callable, state: Any, batch: Any, hyper: Any, key: Any) -> jax.stages.Lowered:
    """Lower a step of `pmap_step` for arguments of these shapes, which may be arrays or `ShapeDtypeStruct`s.

    The batch has the shapes of this process, as in a call. After `.compile()` of the result, a call of the step with
    such arguments runs that executable: it neither traces nor compiles again.
    """
    if jax.process_count() == 1:
        return step.lower(state, batch, hyper, key)
    # Among several processes, pmap converts the arrays of a call to global ones, but does not convert shapes.
    count = jax.process_count()
    devices = [device for process in range(count) for device in jax.local_devices(process)]  # the order of pmap
    mesh = Mesh(np.array(devices), (AXIS,))

    def everywhere(tree: Any, spec: PartitionSpec, times: int = 1) -> Any:
        def shape(x: Any) -> Any:
            sizes = (x.shape[0] * times, *x.shape[1:]) if x.shape else ()
            return jax.typeof(jax.ShapeDtypeStruct(sizes, x.dtype, sharding=NamedSharding(mesh, spec)))

        return jax.tree.map(shape, tree)

    batch = everywhere(batch, PartitionSpec(AXIS), count)
    return step.lower(everywhere(state, PartitionSpec()), batch, *everywhere((hyper, key), PartitionSpec()))


# Without these, the TPU compiler asks the network for the TPU of this machine. The type and the hosts are those of any
# slice: the topology's name decides. Loading it twice is safe, since no TPU is opened.
_COMPILER_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def topology_devices(name: str) -> list[jax.Device]:
    """Return the devices of a TPU topology such as "v5e:4x8", to compile for. No TPU is needed.

    JAX then uses the CPU of this machine, unless JAX_PLATFORMS says otherwise.

    Raises:
      ValueError: if the TPU compiler, the package libtpu, is missing or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"--topology={name} needs the TPU compiler: pip install -r requirements-tpu.txt")
    for variable, value in _COMPILER_ONLY.items():
        os.environ.setdefault(variable, value)
    if not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--topology={name}: {reason}; name one such as v5e:4x8, v5p:4x4x4 or v6e:8x8") from error
    return sorted(devices, key=lambda device: device.process_index)


def pmap_evaluation(step: Callable, devices: list[jax.Device] | None = None) -> Callable:
    """Compile `step(variables, batch, key) -> outputs` for all devices; outputs keep the device axis."""
    return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, None), devices=devices)


def pmap_local(step: Callable) -> Callable:
    """Compile `step(variables, batch, key) -> outputs` for this process's devices, independent of other processes.

    The step has no collectives: each device computes its rows as if it were the only one.
    """
    return pmap_evaluation(step, devices=jax.local_devices())


def put(batch: Any) -> Any:
    """Start copying the arrays of a batch `[n, …]` to this process's devices, split as `shard` does."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(shard(batch), NamedSharding(mesh, PartitionSpec(AXIS)))


def fetch_ahead(tree: Any) -> None:
    """Start copying outputs to the host, where `parts` reads them."""
    for array in jax.tree.leaves(tree):
        array.copy_to_host_async()


def parts(tree: Any) -> list[Any]:
    """Fetch outputs with a device axis and return a list of trees, the rows of each device of this process.

    On a CPU the rows are views of the device's memory.
    """
    leaves, structure = jax.tree.flatten(tree)
    shards = [sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0) for leaf in leaves]
    fetched = [[np.asarray(shard.data)[0] for shard in each] for each in shards]
    return [structure.unflatten(rows) for rows in zip(*fetched, strict=True)]


def to_host(tree: Any) -> Any:
    """Fetch arrays from this process's devices as NumPy arrays."""
    return jax.tree.map(_local, tree)


def _local(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = array.addressable_data(0)  # replicated over all processes: each has a copy
    return np.asarray(array)


def copy_to_host(tree: Any) -> Any:
    """Copy arrays from this process's devices to memory of the host that no later step overwrites.

    NumPy arrays are returned as they are.
    """
    fetch_ahead([leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)])

    def copy(array: Any) -> np.ndarray:
        host = _local(array)
        on_host = isinstance(array, jax.Array) and any(device.platform == "cpu" for device in array.devices())
        return np.array(host) if on_host else host  # on a CPU, `host` is a view of the device's memory

    return jax.tree.map(copy, tree)


def unshard(tree: Any) -> Any:
    """Undo `shard` on fetched outputs: `[devices, n, …]` becomes `[devices · n, …]`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), to_host(tree))


def shapes(tree: Any) -> Any:
    """Return the shapes, dtypes and shardings of arrays, which stay known after a step has overwritten the arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def gather(tree: Any) -> Any:
    """Concatenate every process's NumPy arrays `[n, …]` along their first axis, in the order of processes."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)


def any_process(flag: bool) -> bool:
    """Return whether `flag` is True in any process; a collective that all processes must call at the same point."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
