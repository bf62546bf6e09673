"""Ways to select the k-th largest value of each row: their time here, and the TPU compiler's estimate.

    python benchmarks/selection.py [--topology=v5e:2x2] [--rounds=10]

All candidates return the same integer, which is checked. They are compiled first and then timed in turn; the best time
over the rounds is printed. `lax.top_k` needs a constant k, so it is a bound only: the k of training is traced. Where
compiling takes minutes, the table has a dash.

With `--topology` nothing is timed: the TPU compiler (requirements-tpu.txt) compiles for that chip, and the cycles that
it estimates for each kernel are added. It writes one pass of a loop, which counts as often as the loop runs. It gives
no estimate for a sort, whose roofline is printed instead (≥): the bytes that it counts, over the chip's bandwidth.
"""

import argparse
import math
import pathlib
import sys
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from estimate import CLOCKS, estimate

from sdecor.core import arrays, parallel
from sdecor.training.compiled import CHIPS

SHAPES = ((128, 32), (32, 224), (8, 512))
Search = Callable[[jax.Array, jax.Array], jax.Array]


def digits(bits: int) -> Search:
    """Return the search of `bits` bits a pass."""
    return partial(arrays._search_digits, bits=bits)


def histogram(keys: jax.Array, k: jax.Array, bits: int = 8) -> jax.Array:
    """Search digit by digit, each from a histogram of the keys whose higher digits are those found."""
    numbers, prefix = arrays.unsigned(keys), jnp.zeros(keys.shape[0], jnp.uint32)
    rows = jnp.arange(keys.shape[0])
    for shift in range(32 - bits, -1, -bits):
        alive = (numbers >> shift >> bits) == prefix[:, None]
        digit = ((numbers >> shift) & (2**bits - 1)).astype(jnp.int32)
        counts = jnp.zeros((keys.shape[0], 2**bits + 1), jnp.int32).at[rows[:, None], digit].add(alive)
        reached = jnp.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
        found = (reached >= k[:, None]).sum(1) - 1
        k = k - reached[rows, found + 1]
        prefix = (prefix << bits) | found.astype(jnp.uint32)
    return arrays.signed(prefix)


def of_sorted(sort: Callable[[jax.Array], jax.Array]) -> Search:
    """Return the search that sorts rows and takes one value."""
    return lambda keys, k: jnp.take_along_axis(sort(keys), keys.shape[1] - k[:, None], axis=1)[:, 0]


CANDIDATES: dict[str, Search] = {
    "bisection (CPU, GPU)": arrays._search_bits,
    "digits of 1 bit": digits(1),
    "digits of 2 bits": digits(2),
    "digits of 4 bits (TPU)": digits(4),
    "histograms of 8 bits": histogram,
    "sort": of_sorted(jnp.sort),
    "our sort": of_sorted(arrays.sort_rows),
    "top_k, k constant": lambda keys, k: jax.lax.top_k(keys, keys.shape[1] // 2)[0][:, -1],
}
LONG = {("our sort", 512)}
PASSES = {"bisection (CPU, GPU)": 32, "digits of 1 bit": 32, "digits of 2 bits": 16, "digits of 4 bits (TPU)": 8}


def timed(n: int, side: int, rounds: int) -> dict[str, str]:
    """Return milliseconds by candidate, the best of some rounds."""
    keys = arrays.order_keys(jax.random.normal(jax.random.key(1), (n, side**2)))
    k = jnp.full(n, side**2 // 2, jnp.int32)
    expected = np.sort(keys, axis=1)[:, -(side**2 // 2)]
    calls = {name: jax.jit(search) for name, search in CANDIDATES.items() if (name, side) not in LONG}
    for name, call in calls.items():
        np.testing.assert_array_equal(call(keys, k), expected, err_msg=name)
    best = dict.fromkeys(calls, math.inf)
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(keys, k))
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: f"{1e3 * seconds:.2f}" for name, seconds in best.items()}


def estimated(n: int, side: int, device: jax.Device) -> dict[str, str]:
    """Return the compiler's milliseconds by candidate."""
    place = jax.sharding.SingleDeviceSharding(device)
    keys = jax.ShapeDtypeStruct((n, side**2), jnp.int32, sharding=place)
    k = jax.ShapeDtypeStruct((n,), jnp.int32, sharding=place)
    found = {}
    for name, search in CANDIDATES.items():
        if name in ("histograms of 8 bits", "our sort"):  # one scatter a key, which a TPU runs in turn; the sort again
            continue
        compiled = jax.jit(search).lower(keys, k).compile()
        if name in PASSES:
            cycles = estimate(compiled.as_text(), passes=PASSES[name]).cycles
            found[name] = f"{1e3 * cycles / CLOCKS[device.device_kind]:.3f}"
        else:
            seconds = compiled.cost_analysis()["bytes accessed"] / CHIPS[device.device_kind].bandwidth
            found[name] = f"≥ {1e3 * seconds:.3f}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--topology", help="compile for a TPU instead, such as v5e:2x2")
    options = parser.parse_args()
    device = parallel.topology_devices(options.topology)[0] if options.topology else jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}; ms\n")
    if options.topology:
        columns = [estimated(n, side, device) for n, side in SHAPES]
    else:
        columns = [timed(n, side, options.rounds) for n, side in SHAPES]
    print(f"| search | {' | '.join(f'{n} × {side}²' for n, side in SHAPES)} |\n{'| --- ' * (len(SHAPES) + 1)}|")
    for name in CANDIDATES:
        if name in columns[0]:
            print(f"| {name} | {' | '.join(column.get(name, '–') for column in columns)} |")


if __name__ == "__main__":
    main()
