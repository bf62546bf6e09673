"""Time a training step of sdecor beside the same step in PyTorch: in SGT's published structure, and vectorised.

    pip install -r benchmarks/peers/requirements.txt         in an environment of its own
    python benchmarks/peers/compare.py [--models=cnn,resnet18] [--batch_size=128,32] [--rounds=9] [--one_process]

Same network, weights, batch of uint8 images on the host, and optimizer (AdamW). Before anything is timed, the loss and
the gradients of both libraries are compared; a difference above float32's rounding ends the script with an error.

sdecor and PyTorch run in a process each, because the waiting threads of one library would slow the other. The steps
take turns, round after round, while the other process waits. The medians over the rounds are printed. The device is a
GPU if both libraries see one, else the CPU.
"""

import argparse
import importlib.util
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from problem import CLASSES, MEAN, SIZE, STD, STEPS, create_config, random_batch

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

# Name of the alternative -> whether channels are last, and whether the network is compiled; None: published structure.
TORCH = {
    "published": None,
    "NCHW": (False, False),
    "channels last": (True, False),
    "compiled": (False, True),
}


def build_sdecor(name: str, batch_size: int, alternatives: Sequence[str]) -> dict[str, Callable[[], None]]:
    """Return sdecor's steps as train.py takes them; each call takes one and waits."""
    import jax

    from sdecor.core import parallel, rng
    from sdecor.training import build

    images, labels = random_batch(batch_size)

    def create(label: str) -> Callable[[], None]:
        config = create_config(name, label, batch_size)
        program = build.create_program(config, build.assume_facts(config, CLASSES))
        step = parallel.pmap_step(program.step)
        state = build.create_state(config, program.model, program.image_shape)
        hyper = parallel.replicate(build.create_hyper(config, program.schedule.steps_per_epoch))
        key = parallel.replicate(rng.run_key(config.seed, 1))

        def take_step() -> None:
            nonlocal state
            batch = {"image": images, "label": labels, "position": np.arange(batch_size, dtype=np.int32)}
            state, terms = step(state, parallel.shard(batch), hyper, key)
            jax.block_until_ready((state, terms))

        return take_step

    return {f"sdecor/{label}": create(label) for label in STEPS}


def build_torch(name: str, batch_size: int, alternatives: Sequence[str]) -> dict[str, Callable[[], None]]:
    """Return PyTorch's steps of the alternatives in `TORCH`; each call takes one and waits."""
    import torch
    import torch_networks
    import torch_steps

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = random_batch(batch_size)
    built = {}
    for alternative in alternatives:
        how = TORCH[alternative]
        channels_last, compiled = how or (False, False)
        if compiled:
            import torch._functorch.config

            torch._functorch.config.donated_buffer = False  # the graph of the clean forward is used twice
        for label, (_, _, loss) in STEPS.items():
            if how is None and label == "ce":
                continue
            torch.manual_seed(0)
            trainer = torch_steps.Trainer(torch_networks.NETWORKS[name](CLASSES), device, MEAN, STD, channels_last)
            if compiled:
                trainer.model.compile()
            step = torch_steps.published if how is None else torch_steps.vectorised

            def take_step(step: Callable, trainer: Any, loss: Any) -> None:
                step(trainer, images, labels, loss)
                trainer.synchronise()

            built[f"{alternative}/{label}"] = partial(take_step, step, trainer, torch_steps.Loss(*loss))
    return built


def describe_sdecor() -> tuple[str, str]:
    import jax

    return f"jax {jax.__version__}", f"{jax.device_count()} {jax.devices()[0].platform}"


def describe_torch() -> tuple[str, str]:
    import torch

    gpus = torch.cuda.device_count()
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads", f"{gpus} gpu" if gpus else "1 cpu"


class Timer:
    """The steps of one library in this process: `prepare` builds them and takes the first ones, `time` takes one."""

    def __init__(self, library: str) -> None:
        self.library, self.steps = library, {}
        if library == "sdecor":
            from sdecor.core import allocator

            allocator.keep_freed_memory()  # as train.py does, before JAX starts its threads

    def prepare(self, name: str, batch_size: int, alternatives: Sequence[str]) -> list[str]:
        """Build the steps of a network, take the first two of each, and return their names."""
        self.steps.clear()
        self.steps |= {"sdecor": build_sdecor, "torch": build_torch}[self.library](name, batch_size, alternatives)
        for take_step in self.steps.values():
            take_step()
            take_step()
        return list(self.steps)

    def time(self, step: str, count: int) -> float:
        """Return the seconds of a step, as the mean of `count`."""
        start = time.perf_counter()
        for _ in range(count):
            self.steps[step]()
        return (time.perf_counter() - start) / count

    def describe(self) -> tuple[str, str]:
        """Return the library's version and its devices."""
        return {"sdecor": describe_sdecor, "torch": describe_torch}[self.library]()


def check(*arguments: Any) -> str:
    from agreement import check

    return check(*arguments)


def serve(library: str, pipe: Any) -> None:
    """Answer the calls of a `Remote` until its end of the pipe is closed."""
    timer = Timer(library)
    try:
        while True:
            method, arguments = pipe.recv()
            pipe.send(getattr(timer, method)(*arguments))
    except EOFError:
        return


class Remote:
    """A `Timer` in a process of its own."""

    def __init__(self, library: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._library = library
        context.Process(target=serve, args=(library, other), daemon=True).start()
        other.close()

    def __getattr__(self, method: str) -> Callable:
        def call(*arguments: Any) -> Any:
            self._pipe.send((method, arguments))
            try:
                return self._pipe.recv()
            except EOFError:
                sys.exit(f"benchmarks/peers/compare.py: the process of {self._library} ended; its error is above")

        return call


def measure(
    timers: list[Any], name: str, batch_size: int, alternatives: Sequence[str], rounds: int, seconds: float
) -> None:
    """Print the table of one network."""
    steps = [(timer, step) for timer in timers for step in timer.prepare(name, batch_size, alternatives)]
    counts = {step: max(1, round(seconds / timer.time(step, 1))) for timer, step in steps}
    times: dict[str, list[float]] = {step: [] for _, step in steps}
    for _ in range(rounds):
        for label in STEPS:  # the alternatives of one training method follow each other
            for timer, step in steps:
                if step.endswith(f"/{label}"):
                    time.sleep(0.05)  # the threads of the process before go to sleep
                    times[step].append(timer.time(step, counts[step]))
    medians = {step: statistics.median(each) for step, each in times.items()}
    print(f"\n{name}, {batch_size} images of {SIZE}×{SIZE}; images/s, and how many times as fast sdecor is\n")
    columns = ["sdecor", *(f"PyTorch, {each}" for each in alternatives), "× published", "× best vectorised"]
    print(f"| {name}, {batch_size} | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for label in STEPS:
        own = medians[f"sdecor/{label}"]
        others = {each: medians.get(f"{each}/{label}") for each in alternatives}
        best = min(value for each, value in others.items() if each != "published")
        rates = [f"{batch_size / value:.0f}" if value else "–" for value in (own, *others.values())]
        published = f"{others['published'] / own:.2f}" if others.get("published") else "–"
        print(f"| {label} | {' | '.join(rates)} | {published} | {best / own:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="cnn,resnet18")
    parser.add_argument("--batch_size", default="128,32", help="of each model")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="least time of a measurement")
    parser.add_argument("--one_process", action="store_true", help="both libraries in one process")
    parser.add_argument("--without", default="", help="alternatives to leave out, such as compiled")
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        sys.exit("benchmarks/peers/compare.py needs PyTorch: pip install -r benchmarks/peers/requirements.txt")
    left_out = [each for each in options.without.split(",") if each]
    if unknown := [each for each in left_out if each not in TORCH]:
        parser.error(f"--without={unknown[0]} is no alternative: name some of {', '.join(TORCH)}")
    alternatives = [each for each in TORCH if each not in left_out]
    if "NCHW" in left_out and "channels last" in left_out:
        parser.error("--without leaves no vectorised step: keep NCHW or channels last")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the other library shares the GPU's memory
    sizes = [int(each) for each in options.batch_size.split(",")]
    names = options.models.split(",")
    if len(sizes) != len(names):
        parser.error(f"--batch_size={options.batch_size} must hold a number for each of --models={options.models}")
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # both libraries are in this process alone
        try:
            rows = [pool.apply(check, (name, label, 16)) for name in names for label in STEPS]
        except ValueError as error:
            sys.exit(f"benchmarks/peers/compare.py: {error}")
    print("\nsdecor and PyTorch for the same weights, batch of 16 and masks\n")
    print("| network | step | loss | difference, relative | of the gradient | equal masks |")
    print(f"|{' --- |' * 6}", *rows, sep="\n", flush=True)
    timers = [(Timer if options.one_process else Remote)(library) for library in ("sdecor", "torch")]
    how = "one process" if options.one_process else "a process each"
    versions, devices = zip(*(timer.describe() for timer in timers), strict=True)
    if devices[0] != devices[1]:
        sys.exit(f"benchmarks/peers/compare.py: sdecor would run on {devices[0]} and PyTorch on {devices[1]}")
    print(f"\n{', '.join(versions)}, {devices[0]}, {how}")
    for name, batch_size in zip(names, sizes, strict=True):
        measure(timers, name, batch_size, alternatives, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
