"""Cost of a training step, as a multiple of a cross-entropy step in the same run.

    python benchmarks/step.py [--models=cnn,resnet18] [--batch_size=128] [--rounds=15] [--default_allocator]

All variants are compiled first and then timed in turn, round after round, so that a busy machine slows all of them. The
medians over the rounds are printed, and the ratio of the operations that the compiler counts. "CPU" is the processor
time of all threads, which depends less on other work than the time. The compiler counts the body of a loop once, so the
selection's 32 passes show in the time alone. Ablations show the cost of the parts around the forwards: the selection of
k positions, the fill and the decorrelation term. Needs only jax, flax, optax, orbax-checkpoint, chex and a Unix system.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from sdecor import masking, models
from sdecor.core import allocator, parallel
from sdecor.data.augment import normalise
from sdecor.training import steps, terms
from sdecor.training.objective import Masking, Objective, Ramp
from sdecor.training.state import create_optimizer, create_train_state

MODELS = {"cnn": {}, "resnet18": {"stem": "cifar"}, "resnet50": {"stem": "imagenet"}}
CONSISTENCY, MASKING = {"consistency": terms.consistency}, Masking()
COVARIANCE = {"decorrelation": terms.decorrelation}  # the paper's, on the last features
OPTIONS = {"spatial": "positions", "rectify": True}  # as form=density sets them, on all activations
DENSITIES = {"decorrelation": partial(terms.decorrelation, form="density", **OPTIONS)}
DENSITY = Objective(CONSISTENCY | DENSITIES, masking=MASKING, watch=partial(terms.watch, **OPTIONS))
CE, SDECOR = Objective(), Objective(CONSISTENCY | COVARIANCE, masking=MASKING)
WEIGHTS = {"consistency": 1.0, "decorrelation": 1.0, "gradient_penalty": 0.1}
HYPER = steps.Hyper(
    learning_rate=np.float32(1e-3),
    weight_decay=np.float32(0),
    mask_fraction=Ramp(np.float32(0.5), np.float32(0)),
    weights={name: Ramp(np.float32(weight), np.float32(0)) for name, weight in WEIGHTS.items()},
)


def given_mask(key: jax.Array, saliency: jax.Array, **options: Any) -> jax.Array:
    """Replace the selection: mask where the saliency is below 0.1 of its maximum, which needs no search."""
    return saliency < 0.1 * jnp.max(saliency, axis=(1, 2), keepdims=True)


def no_saliency(gradient: jax.Array, **options: Any) -> jax.Array:
    """Replace the saliency by a constant ramp, so that the pull-back to the images is dead code."""
    n, height, width, _ = gradient.shape
    ramp = jnp.arange(height * width, dtype=jnp.float32).reshape(1, height, width)
    return jnp.broadcast_to(ramp, (n, height, width))


def variants() -> dict[str, tuple[Objective, Any]]:
    """Return the objective and the context of the step's trace, by name of the variant."""
    nothing = contextlib.nullcontext
    no_selection = partial(mock.patch.object, masking, "least_salient", given_mask)
    constant_ranking = partial(mock.patch.object, masking, "rank_saliency", no_saliency)
    return {
        "ce": (CE, nothing),
        "sgt (shared)": (Objective(CONSISTENCY, masking=MASKING), nothing),
        "decor": (Objective(COVARIANCE), nothing),
        "decor (density)": (dataclasses.replace(DENSITY, terms=DENSITIES, masking=None), nothing),
        "gradpen": (Objective({"gradient_penalty": terms.gradient_penalty}, penalty_of="cross_entropy"), nothing),
        "sdecor (shared)": (SDECOR, nothing),
        "sdecor (frozen)": (dataclasses.replace(SDECOR, masking=Masking(forward="frozen")), nothing),
        "sdecor (eval)": (dataclasses.replace(SDECOR, masking=Masking(forward="eval")), nothing),
        "sdecor (density)": (DENSITY, nothing),
        "sdecor (shared), remat": (dataclasses.replace(SDECOR, masking=Masking(remat=True)), nothing),
        "sdecor (shared), every 2": (dataclasses.replace(SDECOR, masking=Masking(every=2)), nothing),
        "sdecor (shared), every 4": (dataclasses.replace(SDECOR, masking=Masking(every=4)), nothing),
        "sdecor (frozen), every 2": (dataclasses.replace(SDECOR, masking=Masking(forward="frozen", every=2)), nothing),
        "sdecor (frozen), every 4": (dataclasses.replace(SDECOR, masking=Masking(forward="frozen", every=4)), nothing),
        "· without selection": (SDECOR, no_selection),
        "· without the saliency's pull-back": (SDECOR, constant_ranking),
        "· fill by zeros": (dataclasses.replace(SDECOR, masking=Masking(fill="zero")), nothing),
        "· without selection, zeros, decorrelation": (
            Objective(CONSISTENCY, masking=Masking(fill="zero")),
            no_selection,
        ),
    }


def build(
    name: str, size: int, batch_size: int, objective: Objective, context: Any, dtype: str
) -> tuple[Callable[..., Any], float]:
    """Compile one variant; return a function that takes a step, and the compiler's count of operations.

    The function starts a step on its own batch or a given one, and returns its terms, for which the caller may wait.
    """
    model = models.create_model(name, num_classes=10, dtype=dtype, axis_name=parallel.AXIS, **MODELS[name])
    if objective.watch is DENSITY.watch:
        model = models.Tap(model, model.activations)
    tx = create_optimizer("sgd")
    shape = (size, size, 3)
    state = parallel.replicate(create_train_state(model, tx, key=jax.random.key(0), image_shape=shape))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (batch_size, *shape), dtype=np.uint8),
        "label": rng.integers(0, 10, batch_size).astype(np.int32),
        "position": np.arange(batch_size, dtype=np.int32),
    }
    step = partial(
        steps.train_step,
        objective=objective,
        prepare=lambda keys, images: normalise(images, (0.5,) * 3, (0.25,) * 3),
        schedule=lambda step: 1.0,
        axis_name=parallel.AXIS,
    )
    arguments = parallel.shard(batch), parallel.replicate(HYPER), parallel.replicate(jax.random.key(1))
    arguments = (jax.device_put(arguments[0]), *arguments[1:])
    with context():
        compiled = parallel.pmap_step(step).lower(state, *arguments).compile()
    flops = compiled.cost_analysis()
    count = (flops[0] if isinstance(flops, list) else flops or {}).get("flops", float("nan"))

    def take_step(batch: Any = arguments[0]) -> Any:
        nonlocal state
        state, terms = compiled(state, batch, *arguments[1:])
        return terms

    return take_step, count


def measure(name: str, options: argparse.Namespace) -> None:
    """Print the table of one model."""
    size, batch_size, rounds, dtype = options.size, options.batch_size, options.rounds, options.dtype
    chosen = {label: variants()[label] for label in (options.steps or ";".join(variants())).split(";")}
    built = {label: build(name, size, batch_size, *variant, dtype) for label, variant in chosen.items()}
    taken: dict[str, list[np.ndarray]] = {label: [] for label in built}
    for _ in range(rounds + 1):
        for label, (take_step, _) in built.items():
            start = spent()
            jax.block_until_ready(take_step())
            taken[label].append(spent() - start)
    medians = {label: np.median(rows[1:], axis=0) for label, rows in taken.items()}
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}, jax {jax.__version__}"
    print(f"\n{name}, {batch_size} images of {size}×{size}, {dtype}, {devices}\n")
    heads = ("step", "ms", "images/s", "× ce (time)", "CPU ms", "× ce (CPU)", "page faults", "× ce (operations)")
    print(f"| {' | '.join(heads)} |\n" + "| --- " * len(heads) + "|")
    for label, (seconds, processor, faults) in medians.items():
        ratio, of_processor, _ = medians[label] / np.maximum(medians["ce"], 1e-9)
        cells = [label, f"{1e3 * seconds:.1f}", f"{batch_size / seconds:.0f}", f"{ratio:.2f}"]
        cells += [f"{1e3 * processor:.0f}", f"{of_processor:.2f}", f"{faults:,.0f}"]
        cells += [f"{built[label][1] / built['ce'][1]:.2f}"]
        print(f"| {' | '.join(cells)} |")


def spent() -> np.ndarray:
    """Return the seconds, the processor seconds of all threads and the page faults of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([time.perf_counter(), usage.ru_utime + usage.ru_stime, usage.ru_minflt])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="cnn,resnet18")
    parser.add_argument("--steps", help="rows of the table, ce first, separated by ;  (default: all)")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--default_allocator", action="store_true", help="leave the C library's allocator as it is")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    if not options.default_allocator:
        allocator.keep_freed_memory()  # as train.py does
    for name in options.models.split(","):
        measure(name, options)


if __name__ == "__main__":
    main()
