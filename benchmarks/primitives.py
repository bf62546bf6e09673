"""Times of three operations in JAX's form and in ours, each pair timed in turn.

    python benchmarks/primitives.py [--rounds=10]

The operations are the input gradient of convolutions inside a loop (sdecor/attribution/canonical.py), the k-th smallest
value of a row and the sorting of rows (sdecor/core/arrays.py).
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from attribution import best_times
from networks import NETWORKS, jax_network

from sdecor.attribution.canonical import canonical
from sdecor.core.arrays import kth_smallest, order_keys, sort_rows
from sdecor.core.chunks import sum_over

LOOPS = 16


def gradient_in_loop(fn: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Return the sum of `LOOPS` gradients at scaled images, computed in a loop."""

    def summed(image: jax.Array) -> jax.Array:
        return sum_over(lambda i: jax.grad(lambda x: fn(x)[0])(image * (1 + i / LOOPS)), LOOPS)

    return jax.vmap(summed)


def pair(plain: Callable, own: Callable, *arguments: Any) -> dict[str, Callable[[], Any]]:
    """Return both functions, compiled, as calls that wait for their results."""
    plain, own = jax.jit(plain), jax.jit(own)
    return {
        "plain": lambda: jax.block_until_ready(plain(*arguments)),
        "own": lambda: jax.block_until_ready(own(*arguments)),
    }


def cases() -> dict[str, tuple[dict[str, Callable[[], Any]], int]]:
    """Return JAX's and our form of each operation by name, and how often a call computes it."""
    found = {}
    for pooling in ("max", "mean"):
        layers = tuple(pooling if layer == "max" else layer for layer in NETWORKS["small"].layers)
        fn = jax_network(NETWORKS["small"]._replace(layers=layers))
        images = jax.random.normal(jax.random.key(0), (64, 32, 32, 3))
        one = pair(
            jax.vmap(jax.grad(lambda x, fn=fn: fn(x)[0])),
            jax.vmap(jax.grad(lambda x, fn=fn: canonical(fn)(x)[0])),
            images,
        )
        found[f"gradient, {pooling} pooling, alone"] = one, 1
        loop = pair(gradient_in_loop(fn), gradient_in_loop(canonical(fn)), images)
        found[f"gradient, {pooling} pooling, in a loop"] = loop, LOOPS
    for n, side in ((128, 32), (32, 224)):
        values = jax.random.normal(jax.random.key(1), (n, side**2))
        k = jnp.full(n, side**2 // 2)
        sort_key = lambda x: jax.lax.sort((x, -x), num_keys=2)[0][:, x.shape[1] // 2]  # noqa: E731
        found[f"k-th smallest of {n} × {side}²"] = (
            pair(sort_key, lambda x, k=k: kth_smallest(order_keys(x), k), values),
            1,
        )
        found[f"sorting {n} × {side}²"] = (
            pair(lambda x: jnp.sort(x, axis=1), lambda x: sort_rows(order_keys(x)), values),
            1,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}; best of {options.rounds} rounds\n")
    print("| operation | JAX's, ms | ours, ms |\n| --- | --- | --- |")
    for name, (calls, count) in cases().items():
        best = best_times(calls, options.rounds)
        print(f"| {name} | {1e3 * best['plain'] / count:.2f} | {1e3 * best['own'] / count:.2f} |", flush=True)


if __name__ == "__main__":
    main()
