"""The share of the pure attribution rate that an export reaches, and its peak memory for 1× and 10× the images.

    python benchmarks/export.py [--model=cnn] [--size=32] [--images=4096] [--methods=gradient,smoothgrad:samples=8,…]

The pure rate is that of the same compiled programs on a batch that is on the device already, with one batch dispatched
ahead. An export adds reading (from memory, without decoding), transfers, encoding, compression and durable writes. Its
rate is taken from its first batch to its last, without compilation.

Both are measured in one run, in alternating rounds. The result is the median of the rounds' ratios, which is steadier
on a shared machine than either rate. On a CPU the export's own work competes with the computation. Therefore the ratio
of CPU times per image is printed too, which other programs hardly change. Each peak of memory is measured in a process
of its own.
"""

import argparse
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from sdecor.core import parallel
from sdecor.evaluation import Setup, choose_methods
from sdecor.evaluation.programs import images_of, network
from sdecor.export import Options, export_split
from sdecor.export.programs import (
    Task,
    compiled,
    fitting_chunk_size,
    named,
)
from sdecor.models import create_model

POOL = 256  # different images


class Memory:
    """A data set of `count` uint8 images, repeated from a pool in memory."""

    def __init__(self, count: int, size: int):
        rng = np.random.default_rng(0)
        self.pool = rng.integers(0, 256, (POOL, size, size, 3), dtype=np.uint8)
        self.labels = np.arange(count, dtype=np.int32) % 10

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.pool[index % POOL], "label": self.labels[index]}

    def name(self, index: int) -> str:
        return f"synthetic {index}"


def subject(options: argparse.Namespace) -> tuple[Setup, Any]:
    """Return the network and its variables."""
    model = create_model(options.model, num_classes=10)
    example = jnp.zeros((1, options.size, options.size, 3))
    variables = model.init(jax.random.key(0), example)

    def apply(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return model.apply(variables, images)

    return Setup(apply, (0.5,) * 3, (0.25,) * 3), variables


def clocks() -> np.ndarray:
    """Return the time and the CPU time of this process, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def pure_times(programs: Any, variables: Any, batch: dict, key: jax.Array, count: int) -> np.ndarray:
    """Return seconds and CPU seconds per image, for a batch that is on the device."""
    previous, images = None, batch["index"].size
    start = clocks()
    for _ in range(count):
        current = programs(variables, batch, key)
        if previous is not None:
            jax.block_until_ready(previous)
        previous = current
    jax.block_until_ready(previous)
    return (clocks() - start) / (count * images)


def export_once(options: argparse.Namespace, count: int, path: pathlib.Path) -> tuple[np.ndarray, Any]:
    """Export images; return seconds and CPU seconds per image, counted from the first batch, and the summary."""
    setup, variables = subject(options)
    seen = []
    done = export_split(
        setup,
        chosen(options),
        variables,
        Memory(count, options.size),
        path,
        dtype=options.dtype,
        options=Options(
            device_batch=options.device_batch,
            chunk_size=options.chunk_size,
            progress=lambda images: seen.append((clocks(), images)),
        ),
    )
    (first, before), (last, _) = seen[0], seen[-1]
    return (last - first) / (sum(images for _, images in seen) - before), done


def chosen(options: argparse.Namespace) -> list[Any]:
    return [method for method, _ in choose_methods(options.methods.split(",")).values()]


def compare(options: argparse.Namespace, folder: pathlib.Path) -> None:
    """Print the rates and their ratio."""
    setup, variables = subject(options)
    task = Task(
        images_of=lambda images: images_of(setup, {"image": images}),
        fn_of=lambda variables: network(setup, variables),
        methods=named(chosen(options)),
        logits_of=lambda variables, images: setup.apply(variables, images)[0],
        dtype=options.dtype,
    )
    shape, n = (options.size, options.size, 3), options.device_batch * jax.local_device_count()
    chunk_size = options.chunk_size or fitting_chunk_size(task, variables, shape, np.uint8)
    programs = compiled(task._replace(chunk_size=chunk_size))
    source = Memory(n, options.size)
    batch = {"image": np.stack([source[i]["image"] for i in range(n)]), "label": source.labels}
    batch = parallel.put(batch | {"index": np.arange(n, dtype=np.int32)})
    variables, key = parallel.replicate((variables, jax.random.key(0)))
    count, rows = max(4, options.images // n // 4), []
    pure_times(programs, variables, batch, key, 2)
    for number in range(options.rounds):
        before = pure_times(programs, variables, batch, key, count)
        exported, done = export_once(options, options.images, folder / f"{number}.zarr")
        pure = (before + pure_times(programs, variables, batch, key, count)) / 2
        rows.append([1 / pure[0], 1 / exported[0], *(pure / exported), options.images / done.seconds])
        print(
            "  round {}: pure {:.0f}, export {:.0f} images/s: {:.1%}, by CPU time {:.1%}".format(number, *rows[-1][:4])
        )
        shutil.rmtree(folder / f"{number}.zarr")
    pure, rate, share, by_cpu, whole = np.median(rows, axis=0)
    what = f"{options.model} {options.size}×{options.size} | {options.methods}"
    print("\n| network | methods | pure, images/s | export, images/s | share | by CPU time |\n" + "| --- " * 6 + "|")
    print(f"| {what} | {pure:.0f} | {rate:.0f} | {share:.1%} | {by_cpu:.1%} |\n")
    stored = done.bytes / options.images
    print(f"with compilation and the end: {whole:.0f} images/s; {stored:.0f} bytes per image are stored")


def peak_memory(options: argparse.Namespace, count: int) -> float:
    """Return the peak resident memory of an export of `count` images, in MiB."""
    given = [f"--{name}={value}" for name, value in vars(options).items() if value is not None and name != "peak"]
    command = [sys.executable, __file__, *given, f"--peak={count}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--methods", default="gradient,smoothgrad:samples=8,integrated_gradients:steps=8")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--device_batch", type=int, default=64)
    parser.add_argument("--chunk_size", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=int, default=None, help="only export so many images and print the peak memory")
    parser.add_argument("--folder", default=None, help="where to write; default: the system's temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.peak is not None:
            export_once(options, options.peak, pathlib.Path(folder) / "peak.zarr")
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            return
        device = jax.local_devices()[0]
        print(f"{device.device_kind} ({device.platform}) × {jax.local_device_count()}, jax {jax.__version__}")
        compare(options, pathlib.Path(folder))
        low, high = peak_memory(options, options.images), peak_memory(options, 10 * options.images)
        print(f"peak memory: {low:.0f} MiB for {options.images} images, {high:.0f} MiB for {10 * options.images}")


if __name__ == "__main__":
    main()
