"""Temporary memory of attribution methods against `chunk_size` and the number of steps, for networks at 224×224.

    python benchmarks/attribution_memory.py [--models=resnet50,vit_ti] [--images=4] [--chunk_sizes=1,4,8]
    python benchmarks/attribution_memory.py --times --models=vit_ti --images=2 --methods="gradient;lrp;lrp:rule=epsilon"

Each program is compiled, not run. Its temporary memory is what the compiler reserves on this device beside arguments
(weights, images) and results. It should grow with `chunk_size` alone, since steps and samples are summed as they come.
A dash is a method that does not support the network.

With `--times` the programs are run too, with drawn weights, all images at a time and the methods' own options. They are
timed in turn, and best times are printed, as multiples of the first method's. Options of a method follow its name, as
for `evaluate.py --methods`, and methods are separated by ; there. Needs only jax, flax, optax, orbax-checkpoint and
chex.
"""

import argparse
import pathlib
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from attribution import best_times

from sdecor.attribution import METHODS, explain
from sdecor.evaluation import choose_methods
from sdecor.models import create_model

# The option that sets the number of evaluations per image. Methods not listed have a fixed number.
MANY = {
    "smoothgrad": "samples",
    "vargrad": "samples",
    "integrated_gradients": "steps",
    "blur_integrated_gradients": "steps",
    "guided_integrated_gradients": "steps",
    "expected_gradients": "samples",
    "rise": "samples",
}
DEFAULT = (
    *("gradient", "grad_cam", "smoothgrad", "integrated_gradients", "guided_integrated_gradients"),
    *("expected_gradients", "guided_backpropagation", "deeplift", "occlusion", "rise"),
)
SIDE = 224


def temporary_bytes(model: Any, variables: Any, images: int, method: str, chunk_size: int, options: dict) -> int | None:
    """Return the bytes of temporary memory for explaining this number of images; None if the network is refused."""

    def run(variables: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        def fn(image: jax.Array) -> jax.Array:
            return model.apply(variables, image[None])[0][0]

        return explain(fn, x, y, method=method, key=jax.random.key(0), chunk_size=chunk_size, **options)

    x = jax.ShapeDtypeStruct((images, SIDE, SIDE, 3), jnp.float32)
    y = jax.ShapeDtypeStruct((images,), jnp.int32)
    try:
        lowered = jax.jit(run).lower(variables, x, y)
    except (ValueError, NotImplementedError):
        return None
    return lowered.compile().memory_analysis().temp_size_in_bytes


def measure(name: str, images: int, methods: list[str], chunk_sizes: list[int], steps: list[int]) -> None:
    """Print the table of one model."""
    model = create_model(name, num_classes=1000)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    device = jax.devices()[0]
    print(
        f"\n{name}, {images} images of {SIDE}×{SIDE}, {device.device_kind} ({device.platform}), jax {jax.__version__}"
    )
    print("MiB of temporary memory by `chunk_size`\n")
    print(f"| method | steps or samples | {' | '.join(map(str, chunk_sizes))} |")
    print("| --- " * (2 + len(chunk_sizes)) + "|")
    for method in methods:
        for count in steps if method in MANY else [None]:
            options = {} if count is None else {MANY[method]: count}
            row = [temporary_bytes(model, variables, images, method, size, options) for size in chunk_sizes]
            mebibytes = " | ".join("–" if used is None else f"{used / 2**20:.0f}" for used in row)
            print(f"| {method} | {count or '–'} | {mebibytes} |", flush=True)


def measure_times(name: str, images: int, words: list[str], rounds: int) -> None:
    """Print the table of one model's times."""
    model = create_model(name, num_classes=1000)
    x = jax.random.normal(jax.random.key(1), (images, SIDE, SIDE, 3))
    variables, labels = jax.jit(model.init)(jax.random.key(0), x[:1]), jnp.arange(images)
    calls, told = {}, {}
    for method, _ in choose_methods(words).values():

        def run(variables: Any, x: jax.Array, y: jax.Array, method: Any = method) -> jax.Array:
            fn = lambda image: model.apply(variables, image[None])[0][0]  # noqa: E731
            return jax.vmap(partial(method.function, fn, **dict(method.options)))(x, y)

        start = time.perf_counter()
        compiled = jax.jit(run).lower(variables, x, labels).compile()
        seconds = time.perf_counter() - start
        calls[method.key] = lambda compiled=compiled: jax.block_until_ready(compiled(variables, x, labels))
        told[method.key] = f"{seconds:.0f} | {compiled.memory_analysis().temp_size_in_bytes / 2**20:.0f}"
    best = best_times(calls, rounds)
    print(f"\n{name}, {images} images of {SIDE}×{SIDE}, {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    first = next(iter(best))
    print(f"| {name} | s for {images} images | × {first} | tracing and compiling, s | temporary memory, MiB |")
    print("| --- " * 5 + "|")
    for key, seconds in best.items():
        print(f"| `{key}` | {seconds:.2f} | {seconds / best[first]:.1f} | {told[key]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="resnet50,vit_ti")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--methods", default=",".join(DEFAULT), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--chunk_sizes", default="1,4,8")
    parser.add_argument("--steps", default="8,64")
    parser.add_argument("--times", action="store_true", help="times instead of chunk sizes and steps")
    parser.add_argument("--rounds", type=int, default=3, help="for --times")
    options = parser.parse_args()
    if options.times:
        for name in options.models.split(","):
            measure_times(name, options.images, options.methods.split(";"), options.rounds)
        return
    chunk_sizes, steps = ([int(n) for n in text.split(",")] for text in (options.chunk_sizes, options.steps))
    for name in options.models.split(","):
        measure(name, options.images, options.methods.split(","), chunk_sizes, steps)


if __name__ == "__main__":
    main()
