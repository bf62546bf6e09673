"""Maps per second of every attribution method, beside captum's, and the share of the possible speed.

    python benchmarks/attribution.py [--batch=64] [--methods=gradient,rise] [--networks=reference,small] [--rounds=5]

A method's limit is the time of its evaluations of the network alone: their number (`sdecor.attribution.cost`) times the
time of one, with the whole batch in one compiled call. For a class activation map it is the time of a forward
evaluation, whose last feature map is returned together with its gradient: the backward evaluation down to the layer is
counted, what the method computes from both is not.

For each method, these evaluations, the method and captum's counterpart are compiled first. Then they are timed in turn,
round after round, so that a busy machine slows all of them. The best times over the rounds are printed. glibc keeps
freed memory, for both libraries, as in `train.py`.

Both libraries get the same weights, images, classes and options. They also get the same number of evaluations in
flight, except captum's GradientShap, which has no setting for it. Without torch and captum 0.9.0 captum's columns are
empty. Otherwise only jax, flax, optax, orbax-checkpoint and chex are needed.
"""

import argparse
import inspect
import math
import pathlib
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from networks import NETWORKS, Network, jax_network, torch_network

from sdecor.attribution import METHOD_INFO, METHODS, explain
from sdecor.attribution.methods import Cost, cost
from sdecor.attribution.targets import score_of
from sdecor.core import allocator

try:
    import torch
    from captum_methods import counterparts
except ImportError:
    torch = None

# Options that differ from the library's defaults. More masks and coalitions would only take longer.
OPTIONS: dict[str, dict[str, Any]] = {
    "guided_integrated_gradients": {"steps": 50},
    **dict.fromkeys(("rise", "kernel_shap", "lime"), {"samples": 200}),
    "shapley_sampling": {"samples": 3},
}
# Class activation maps in which a forward evaluation is followed by a gradient.
CAMS = ("grad_cam", "grad_cam_plus_plus", "layer_cam", "hires_cam", "xgrad_cam", "finer_cam")
OF_ATTENTION = ("attention_rollout", "attention_relevance", "legrad")  # which these networks do not have
MEASURED = [name for name in METHODS if METHOD_INFO[name].cost and name not in OF_ATTENTION]
SHORTEST = 0.05  # seconds: a shorter call is repeated until it takes as long
Timed = dict[str, Callable[[], Any]]


def ours(network: Network, images: np.ndarray, labels: np.ndarray, methods: list[str]) -> tuple[Timed, Timed]:
    """Return the network's evaluations and the methods by name, each a call that waits for its result."""
    fn, key = jax_network(network), jax.random.key(0)
    arrays = jax.device_put((images, labels))

    def evaluation(one: Callable) -> Callable[[], Any]:
        run = jax.jit(jax.vmap(one))
        return lambda: jax.block_until_ready(run(*arrays))

    def method(name: str) -> Callable[[], Any]:
        run = jax.jit(lambda x, y: explain(fn, x, y, method=name, key=key, **OPTIONS.get(name, {})))
        return lambda: jax.block_until_ready(run(*arrays))

    evaluations = {
        "forward": evaluation(lambda x, y: fn(x)[y]),
        # With JAX's and with our input gradient of convolutions: the faster one sets the limit.
        "gradient": evaluation(lambda x, y: jax.grad(lambda image: fn(image)[y])(x)),
        "own gradient": evaluation(lambda x, y: jax.grad(score_of(fn, y))(x)),
        "layer": evaluation(layer_gradient(network)),
    }
    return evaluations, {name: method(name) for name in methods}


def layer_gradient(network: Network) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Return the last feature map of an image, after its ReLU, and the gradient of a class's logit by it."""
    last = max(i for i, layer in enumerate(network.layers) if layer[0] == "conv") + 1
    features, head = jax_network(network, stop=last), jax_network(network, first=last)

    def evaluate(image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        activation = features(image)
        return activation, jax.grad(lambda x: head(x)[label])(activation)

    return evaluate


def theirs(network: Network, images: np.ndarray, labels: np.ndarray, methods: list[str]) -> Timed:
    """Return the chosen methods that captum has."""
    if torch is None:
        return {}
    warnings.filterwarnings("ignore", module="captum")
    module = torch_network(network)
    x, y = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels).long()
    logits = jax.vmap(jax_network(network))(images)
    np.testing.assert_allclose(module(x).detach().numpy(), logits, rtol=1e-3, atol=1e-4)
    found = counterparts(module, len(images), {name: settings(name) for name in METHODS})
    return {name: lambda run=run: run(x, y) for name, run in found.items() if name in methods}


def settings(method: str) -> dict[str, Any]:
    """Return a method's options, defaults included."""
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | OPTIONS.get(method, {})


def best_times(calls: Timed, rounds: int) -> dict[str, float]:
    """Return each call's shortest time in seconds, over rounds of all calls."""
    repeats = {}
    for name, call in calls.items():
        call()  # compiles
        repeats[name] = max(1, math.ceil(SHORTEST / seconds(call, 1)))
    best = dict.fromkeys(calls, math.inf)
    for _ in range(rounds):
        for name, call in calls.items():
            best[name] = min(best[name], seconds(call, repeats[name]))
    return best


def seconds(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(name: str, batch: int, methods: list[str], rounds: int) -> None:
    """Print the table of one network."""
    network, rng = NETWORKS[name], np.random.default_rng(1)
    images = rng.normal(size=(batch, *network.shape)).astype(np.float32)
    labels = rng.integers(0, network.layers[-1][1], batch).astype(np.int32)
    single, own = ours(network, images, labels, methods)
    captum = theirs(network, images, labels, methods)
    once, device = best_times(single, rounds), jax.devices()[0]
    beside = f"torch {torch.__version__}, {torch.get_num_threads()} threads" if torch else "without captum"
    print(
        f"\n{name}: {batch} images of {'×'.join(map(str, network.shape))}, {device.device_kind} ({device.platform}), ",
        end="",
    )
    print(f"jax {jax.__version__}, {beside}; best of {rounds} rounds")
    print(f"One forward {1e3 * once['forward']:.2f} ms, one with its gradient {1e3 * gradient_of(once):.2f} ms\n")
    print("| method | ms | maps/s | forwards + gradients | share of the limit | captum, maps/s | × captum |")
    print("| --- " * 7 + "|")
    for method in methods:
        calls = single | {"sdecor": own[method]} | ({"captum": captum[method]} if method in captum else {})
        count = cost(method, network.shape, **OPTIONS.get(method, {}))
        print(row(method, batch, count, best_times(calls, rounds)), flush=True)


def gradient_of(best: dict[str, float]) -> float:
    return min(best["gradient"], best["own gradient"])


def row(method: str, batch: int, count: Cost, best: dict[str, float]) -> str:
    taken, theirs = best["sdecor"], best.get("captum")
    forward = best["layer" if method in CAMS else "forward"]
    share = (count.forward * forward + count.gradient * gradient_of(best)) / taken
    versus = f"{batch / theirs:.0f} | {theirs / taken:.1f}" if theirs else "– | –"
    counted = f"{count.forward} + {count.gradient}"
    return f"| {method} | {1e3 * taken:.1f} | {batch / taken:.0f} | {counted} | {share:.0%} | {versus} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--methods", default=",".join(MEASURED))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    allocator.keep_freed_memory()
    for name in options.networks.split(","):
        measure(name, options.batch, options.methods.split(","), options.rounds)


if __name__ == "__main__":
    main()
