"""Images per second of every metric, beside Quantus's, and the share of the possible speed.

    python benchmarks/metrics.py [--batch=64] [--metrics=insertion,gini] [--rounds=5] [--quantus_images=4]

A metric's limit is the time of its evaluations of the network alone: their number by the metric's definition times the
time of one, with the whole batch in one compiled call. Evaluations are forward passes and explanations, which are plain
gradients here. They are timed in the same rounds as the metric, one after the other, so that a busy machine slows all
of them. The best times over the rounds are printed. Ranking, drawing, imputing and comparing are the metric's own time.
Metrics that share a loop in an evaluation are timed singly. A share is above 100 % where the compiler does the common
work of evaluations once: two classes of one image need one forward pass.

glibc keeps freed memory, for both libraries, as in `train.py`. Otherwise each call fetches its memory from the system
anew. This takes a third of a single gradient's time and hardly any of a metric's, so the limit would be too easy.

Quantus gets the same weights, images, classes, maps and masks. It gets the same number of evaluations where it has a
setting for it; the number it makes for an image is counted. It gets the whole batch, or `--quantus_images` of it if
the batch would take longer than `LONGEST`. Without torch and Quantus 0.6.0 its columns are empty. Otherwise only jax,
flax, optax, orbax-checkpoint and chex are needed.
"""

import argparse
import inspect
import pathlib
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from attribution import best_times
from jax.extend import core
from networks import NETWORKS, draw, jax_network

from sdecor.attribution import METHODS, reduce
from sdecor.core import allocator
from sdecor.metrics import DATASET_METRICS, METRICS, redraw

try:
    from quantus_metrics import counterparts
except ImportError:
    counterparts = None

NETWORK = NETWORKS["small"]
LAYERS = len(draw(NETWORK))  # layers with parameters
LONGEST = 20.0  # seconds of Quantus for a whole batch
Params = dict[str, dict[str, jax.Array]]


class Work(NamedTuple):
    """Evaluations of the network for one image by the metric's definition, and the options that set their number."""

    forwards: int = 0
    explanations: int = 0
    options: dict[str, Any] = {}


class Batch(NamedTuple):
    """Inputs of the metrics; `attributions` are gradients, `maps` their absolute values summed over channels."""

    images: jax.Array
    labels: jax.Array
    attributions: jax.Array
    maps: jax.Array
    objects: jax.Array


_NEAR = Work(0, 11, {"samples": 10})  # the image and its neighbours
_MODEL_FREE = (
    *("energy_inside", "area_share", "pointing_game", "attribution_localization", "relevance_rank_accuracy"),
    *("top_k_intersection", "roc_auc", "best_iou", "grid_pointing_game", "gini", "entropy", "effective_complexity"),
    *("checkerboard", "mst_compactness", "sufficiency", "consistency"),
)
WORK: dict[str, Work] = {
    **dict.fromkeys(_MODEL_FREE, Work()),
    "top_k_intersection": Work(options={"k": 100}),
    **dict.fromkeys(("insertion", "deletion"), Work(17, options={"steps": 16})),
    **dict.fromkeys(("insertion_vs_random", "deletion_vs_random"), Work(2 * 17, options={"steps": 16})),
    "road": Work(9, options={"percentages": tuple(range(10, 100, 10))}),
    "masked_accuracy": Work(10, options={"percentages": tuple(range(0, 100, 10))}),
    "aopc_morf": Work(17, options={"patch": 8, "order": "morf"}),
    "aopc_lerf": Work(17, options={"patch": 8, "order": "lerf"}),
    "pixel_flipping": Work(33, options={"steps": 32}),
    **dict.fromkeys(("selectivity", "irof"), Work(65, options={"patch": 4})),
    "monotonicity": Work(33, options={"steps": 32}),
    **dict.fromkeys(("average_drop", "average_increase"), Work(2)),
    "faithfulness_correlation": Work(100, options={"samples": 100}),
    "faithfulness_estimate": Work(32, options={"steps": 32}),
    "monotonicity_correlation": Work(1 + 10 * 32, options={"steps": 32, "samples": 10}),
    "sensitivity_n": Work(5 * 100, options={"shares": (0.01, 0.03, 0.1, 0.3, 0.8), "samples": 100}),
    "infidelity": Work(65, options={"samples": 64}),
    **dict.fromkeys(("max_sensitivity", "avg_sensitivity", "local_lipschitz"), _NEAR),
    "continuity": Work(0, 9, {"shifts": (-4, -3, -2, -1, 1, 2, 3, 4)}),
    # The forward pass of the gradient returns logits and features too.
    **dict.fromkeys([f"relative_{of}_stability" for of in ("input", "output", "representation")], _NEAR),
    "coherency": Work(0, 2),
    "adcc": Work(2, 2),
    "arcc": Work(8, 2),
    "random_logit": Work(0, 2, {"num_classes": NETWORK.layers[-1][1]}),
    "parameter_randomization": Work(0, 1 + LAYERS),
    "smooth_mprt": Work(0, 50 * (1 + LAYERS), {"samples": 50}),
    "efficient_mprt": Work(0, 2),
    "completeness": Work(2),
    "non_sensitivity": Work(1 + 1024),
    "input_invariance": Work(0, 2),
}


def make_batch(fn: Callable, size: int) -> Batch:
    """Return a batch of gray images with random boxes; gray, so that a pixel is one feature for Quantus too."""
    rng = np.random.default_rng(1)
    height, width, channels = NETWORK.shape
    images = rng.normal(size=(size, height, width, 1)).astype(np.float32).repeat(channels, 3)
    labels = jnp.asarray(rng.integers(0, NETWORK.layers[-1][1], size), jnp.int32)
    top, left = rng.integers(0, height // 2, size)[:, None, None], rng.integers(0, width // 2, size)[:, None, None]
    rows, columns = np.arange(height)[None, :, None] - top, np.arange(width)[None, None] - left
    objects = (rows >= 0) & (rows < height // 2) & (columns >= 0) & (columns < width // 2)
    attributions = jax.vmap(partial(explain_of, fn))(jnp.asarray(images), labels)
    return Batch(jnp.asarray(images), labels, attributions, reduce(attributions), jnp.asarray(objects))


def explain_of(fn: Callable, image: jax.Array, target: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Return the explanation whose robustness and randomization are measured."""
    return METHODS["gradient"](fn, image, target)


def with_parameters(fn: Callable) -> tuple[Callable[[Params, jax.Array], jax.Array], Params]:
    """Return the network as a function of parameters and image, and its parameters by layer."""
    closed = jax.make_jaxpr(fn)(jnp.zeros(NETWORK.shape))
    names = [(f"layer{i}", leaf) for i in range(LAYERS) for leaf in ("kernel", "bias")]
    params: Params = {}
    for (layer, leaf), value in zip(names, closed.consts, strict=True):  # in the order of their use
        params.setdefault(layer, {})[leaf] = value

    def apply(params: Params, image: jax.Array) -> jax.Array:
        values = [params[layer][leaf] for layer, leaf in names]
        return core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, values))(image)[0]

    return apply, params


def arguments(name: str, fn: Callable, b: Batch, with_params: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a metric's positional arguments; `with_params` are the first three of metrics that replace parameters."""
    explain_one, example = partial(explain_of, fn), (b.images, b.labels)
    features = jax_network(NETWORK._replace(layers=NETWORK.layers[:-1]))
    usual = {
        "mask": (b.objects,),
        "maps": (b.maps,),
        "object": (b.maps, b.objects),
        "network": (fn, b.images, b.maps, b.labels),
        "explanation": (explain_one, *example),
        "parameters": (*with_params, *example),
    }
    special = {
        "grid_pointing_game": (b.maps, b.labels % 4),
        "sufficiency": (b.maps, b.labels),
        "consistency": (b.maps.reshape(len(b.maps), -1).argmax(1) // 64, b.labels),
        "completeness": (fn, b.images, b.attributions, b.labels),
        "infidelity": (fn, b.images, b.attributions, b.labels),
        "adcc": (explain_one, fn, *example),
        "arcc": (explain_one, fn, *example),
        "relative_input_stability": (explain_one, fn, *example),
        "relative_output_stability": (explain_one, fn, *example),
        "relative_representation_stability": (explain_one, fn, features, *example),
        "input_invariance": (explain_of, fn, *example),
    }
    return special[name] if name in special else usual[(METRICS | DATASET_METRICS)[name].needs]


def ours(name: str, fn: Callable, batch: Batch, options: dict[str, Any]) -> Callable[[], Any]:
    """Return the compiled metric on the batch, as a call that waits for its result."""
    function = (METRICS | DATASET_METRICS)[name].function
    accepted = inspect.signature(function).parameters.values()
    if any(p.name == "key" or p.kind is p.VAR_KEYWORD for p in accepted):
        options = options | {"key": jax.random.key(0)}
    apply, params = with_parameters(fn)

    def explain_with(params: Params, *example: jax.Array) -> jax.Array:
        return explain_of(partial(apply, params), *example)

    @jax.jit
    def run(batch: Batch, *both: Params) -> jax.Array:
        return function(*arguments(name, fn, batch, (explain_with, *both)), **options)

    given = (batch, params, redraw(jax.random.key(1), params))
    return lambda: jax.block_until_ready(run(*given))


def evaluations(fn: Callable, batch: Batch) -> dict[str, Callable[[], Any]]:
    """Return a forward pass and an explanation of the batch, each a call that waits for its result."""
    forward = jax.jit(jax.vmap(lambda image, target: fn(image)[target]))
    explanation = jax.jit(jax.vmap(partial(explain_of, fn)))
    return {
        "forward": lambda: jax.block_until_ready(forward(batch.images, batch.labels)),
        "explanation": lambda: jax.block_until_ready(explanation(batch.images, batch.labels)),
    }


def affordable(theirs: Callable[[int], Any], seen: Callable[[], int], few: int, size: int) -> tuple[int, float]:
    """Return the number of images to time Quantus on, and of its evaluations of the network per image."""
    theirs(few)  # warms up
    before, start = seen(), time.perf_counter()
    theirs(few)
    made, first = (seen() - before) / few, time.perf_counter()
    theirs(2 * few)
    once, twice = first - start, time.perf_counter() - first
    whole = twice + max(0, twice - once) / few * (size - 2 * few)
    return size if whole < LONGEST else few, made


def row(name: str, size: int, cost: Work, best: dict[str, float], count: int, made: float) -> str:
    """Return a metric's row of the table."""
    taken = best["ours"]
    limit = cost.forwards * best["forward"] + cost.explanations * best["explanation"]
    share = f"{cost.forwards} + {cost.explanations} | {limit / taken:.0%}" if limit else "– | –"
    versus = "– | – | – | –"
    if count:
        rate = count / best["theirs"]
        versus = f"{rate:.1f} | {made:.0f} | {count} | {size / taken / rate:.1f}"
    return f"| {name} | {1e3 * taken:.2f} | {size / taken:.0f} | {share} | {versus} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--metrics", default=",".join(WORK))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quantus_images", type=int, default=4)
    options = parser.parse_args()
    if options.quantus_images < 2:
        parser.error(
            f"--quantus_images={options.quantus_images}: some of its metrics correlate over images, pass 2 or more"
        )
    allocator.keep_freed_memory()
    fn, size = jax_network(NETWORK), options.batch
    batch = make_batch(fn, size)
    quantus, seen = counterparts(NETWORK, jax.tree.map(np.array, batch)) if counterparts else ({}, None)
    single, device = evaluations(fn, batch), jax.devices()[0]
    once = best_times(single, options.rounds)
    print(f"{size} images of {'×'.join(map(str, NETWORK.shape))}, {device.device_kind} ({device.platform}), ", end="")
    print(f"jax {jax.__version__}, {'beside' if quantus else 'without'} Quantus; best of {options.rounds} rounds")
    print(f"One forward {1e3 * once['forward']:.2f} ms, one explanation {1e3 * once['explanation']:.2f} ms\n")
    print("| metric | ms | images/s | forwards + explanations | share of the limit ", end="")
    print("| Quantus, images/s | its evaluations | of images | × Quantus |")
    print("| --- " * 9 + "|")
    for name in options.metrics.split(","):
        calls, count, made = single | {"ours": ours(name, fn, batch, WORK[name].options)}, 0, 0.0
        if name in quantus:
            count, made = affordable(quantus[name], seen, options.quantus_images, size)
            calls["theirs"] = partial(quantus[name], count)
        print(row(name, size, WORK[name], best_times(calls, options.rounds), count, made), flush=True)


if __name__ == "__main__":
    main()
