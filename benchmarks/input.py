"""Rates of the input: loaders, the decoding of one photograph, and whether the input keeps a training step waiting.

    python benchmarks/input.py
    python benchmarks/input.py --photograph        one photograph alone, such as with pillow-simd

The sources lie in RAM, so that no disk is measured: PNG images of 32×32 with a ramp and noise, and JPEG photographs of
500×400 at quality 90, crops of the two that scikit-learn ships. Alternatives are measured in alternating rounds of one
run, and medians are compared: on a shared machine a ratio is steadier than a rate.

1. Loaders: images per second from memory and through Grain.
2. Augmentation on the default device.
3. One photograph: the processor time of its decoding and resizing. Processor time does not count what other jobs take.
4. Input and step together. The loop is that of train.py: it fetches a batch, starts its step, and waits for the step
   before. The accelerator is emulated by a thread that sleeps for the time of a step and uses no core. On a CPU the
   step and the input share the cores; together they can at best take the sum of both times.
"""

import argparse
import collections
import dataclasses
import functools
import io
import itertools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import step as step_benchmark

from sdecor.core import parallel
from sdecor.data.augment import augment, normalise, to_float
from sdecor.data.decode import Decoder
from sdecor.data.loader import Loader, create_loader

PREFETCH = 4  # batches
CANVAS = 224  # pixels to which photographs are resized


@dataclasses.dataclass
class PngSource:
    """A source of PNG images: a ramp with noise, harder to compress than one color and easier than pure noise."""

    n: int
    size: int

    def __post_init__(self):
        from PIL import Image

        rng = np.random.default_rng(0)
        ramp = np.linspace(0, 191, self.size)[:, None, None]
        self.labels = np.arange(self.n, dtype=np.int32) % 10
        self.encoded = []
        for _ in range(self.n):
            pixels = ramp + rng.integers(0, 64, (self.size, self.size, 3))
            file = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
            self.encoded.append(file.getvalue())

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict:
        from PIL import Image

        with Image.open(io.BytesIO(self.encoded[index])) as image:
            return {"image": np.asarray(image), "label": self.labels[index]}

    def name(self, index: int) -> str:
        return f"synthetic {index}"


class PhotographSource:
    """A source of JPEG photographs of 500×400, decoded as those of a data set with a canvas."""

    def __init__(self, n: int, fit: str = "stretch"):
        from PIL import Image
        from sklearn.datasets import load_sample_images

        photographs = load_sample_images().images  # 640×427
        self.labels = np.arange(n, dtype=np.int32) % 10
        self.decoder = Decoder(canvas=(CANVAS, CANVAS), fit=fit)
        self.encoded = []
        for number in range(16):
            y, x = number % 27, 35 * (number // 4)
            file = io.BytesIO()
            crop = Image.fromarray(photographs[number % 2][y : y + 400, x : x + 500])
            crop.save(file, "JPEG", quality=90)
            self.encoded.append(file.getvalue())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        decoded = self.decoder(self.encoded[index % len(self.encoded)], name=self.name(index))
        return decoded | {"label": self.labels[index]}

    def name(self, index: int) -> str:
        return f"photograph {index}"


def photograph_times(*, rounds: int) -> dict[str, float]:
    """Return the processor milliseconds of one photograph, by what is done to it."""
    from PIL import Image

    encoded = PhotographSource(1).encoded
    whole = Image.open(io.BytesIO(encoded[0]))
    whole.load()
    canvas = (CANVAS, CANVAS)

    def decode(data: bytes, draft: int = 1) -> Image.Image:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (500 // draft, 400 // draft))
        image.load()
        return image

    def through_numpy(data: bytes) -> np.ndarray:
        pixels = np.asarray(decode(data))
        return np.asarray(Image.fromarray(pixels).resize(canvas, Image.Resampling.BILINEAR))

    decoders = {fit: Decoder(canvas=canvas, fit=fit) for fit in ("stretch", "crop")}
    stages = {
        "decoding": decode,
        "decoding to 1/2 (`draft`)": functools.partial(decode, draft=2),
        "decoding to 1/8 (`draft`): little but Huffman decoding": functools.partial(decode, draft=8),
        "resizing": lambda data: whole.resize(canvas, Image.Resampling.BILINEAR),
        "before: a copy to NumPy between decoding and resizing": through_numpy,
        "`Decoder`, stretch": functools.partial(decoders["stretch"], name=""),
        "`Decoder`, crop": functools.partial(decoders["crop"], name=""),
    }
    times: dict[str, list[float]] = {name: [] for name in stages}
    for name in list(stages) * (rounds + 1):
        start = time.process_time()
        for data in encoded:
            stages[name](data)
        times[name].append(1e3 * (time.process_time() - start) / len(encoded))
    return {name: float(np.median(values[1:])) for name, values in times.items()}


@dataclasses.dataclass
class SleepingDevice:
    """An emulated accelerator: steps of a fixed time, one after the other, that use no core."""

    seconds: float

    def __post_init__(self):
        self._queue = ThreadPoolExecutor(1)

    def start(self, batch: dict) -> Any:
        jax.device_put(batch["image"])  # the copy that the host makes for a real device
        return self._queue.submit(time.sleep, self.seconds)

    def wait(self, started: Any) -> None:
        started.result()


class RealDevice:
    """The devices at hand: a cross-entropy step of the small CNN."""

    def __init__(self, size: int, batch_size: int):
        self._step, _ = step_benchmark.build("cnn", size, batch_size, *step_benchmark.variants()["ce"], "float32")

    def start(self, batch: dict) -> Any:
        return self._step(parallel.shard(batch))

    def wait(self, started: Any) -> None:
        jax.block_until_ready(started)


def loop_seconds(batches: Iterator[dict], device: Any, steps: int) -> float:
    """Return the seconds of a step of a training loop, after its first steps; without a device, those of a batch."""
    previous = None
    for number in range(-PREFETCH - 2, steps):
        if number == 0:
            start = time.perf_counter()
        batch = next(batches)
        if device is not None:
            started = device.start(batch)
            if previous is not None:
                device.wait(previous)
            previous = started
    return (time.perf_counter() - start) / steps


def together(loader: Loader, device: Any, *, steps: int, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of a batch of the input alone, a step alone, and a step of both together."""
    kept = loader.batch(0)
    seconds: dict[str, list[float]] = {"input": [], "step": [], "both": []}
    for _ in range(rounds):
        for name, own in (("input", None), ("step", device), ("both", device)):
            batches = itertools.repeat(kept) if name == "step" else loader.iterate()
            seconds[name].append(loop_seconds(batches, own, steps))
            if name != "step":
                batches.close()
                time.sleep(0.3)  # lets batches under way finish
    return {name: 1e3 * float(np.median(values)) for name, values in seconds.items()}


def print_together(args: argparse.Namespace, memory: Loader) -> None:
    """Print the table of input and step together."""
    stream = create_loader(
        PhotographSource(4096), kind="grain", batch_size=32, seed=0, prefetch=PREFETCH, threads=args.threads
    )
    alone = loop_seconds(stream.iterate(), None, args.steps)
    size, batch_size = args.size, args.batch_size
    memory_name, stream_name = f"memory, {size}×{size}, {batch_size}", f"streamed JPEG, {CANVAS}×{CANVAS}, 32"
    cases = [
        (memory_name, memory, "emulated", SleepingDevice(5e-3)),
        (memory_name, memory, "real", RealDevice(size, batch_size)),
        *((stream_name, stream, "emulated", SleepingDevice(alone * share)) for share in (0.5, 1.0, 2.0)),
    ]
    print("\n| input, batch | device | input alone, ms | step alone, ms | both, ms | slower of both / together |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, loader, kind, device in cases:
        steps = args.steps * (8 if name == memory_name and kind == "emulated" else 1)  # they take milliseconds
        found = together(loader, device, steps=steps, rounds=args.rounds)
        shared = kind == "real" and jax.default_backend() == "cpu"
        best = found["input"] + found["step"] if shared else max(found["input"], found["step"])
        share = f"{best / found['both']:.0%}" + (" (of the sum)" if shared else "")
        print(f"| {name} | {kind} | {found['input']:.2f} | {found['step']:.2f} | {found['both']:.2f} | {share} |")


def loader_rates(loaders: dict[str, Loader], *, images: int, batch_size: int, rounds: int) -> dict[str, float]:
    """Return each loader's median images per second, after its first batches."""
    rates = {name: [] for name in loaders}
    for number, name in itertools.product(range(rounds), loaders):
        # Batches from memory take microseconds: more of them are needed for a measurable time.
        count = max(1, images // batch_size) * (20 if loaders[name].kind == "memory" else 1)
        stream = loaders[name].iterate()
        start = time.perf_counter()
        next(stream)
        if number == 0:
            print(f"  {name}: first batch after {time.perf_counter() - start:.2f} s")
        collections.deque(itertools.islice(stream, PREFETCH), maxlen=0)  # batches that were read ahead
        start = time.perf_counter()
        collections.deque(itertools.islice(stream, count), maxlen=0)
        rates[name].append(count * batch_size / (time.perf_counter() - start))
        stream.close()
        time.sleep(0.5)  # lets batches under way finish before the next loader is timed
    return {name: float(np.median(values)) for name, values in rates.items()}


def augmentation_times(batch: dict, *, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of normalising a uint8 batch, alone and after each augmentation."""
    key, mean = jax.random.key(0), (0.5, 0.5, 0.5)

    def prepare(change: Callable, key: jax.Array, images: jax.Array) -> jax.Array:
        return normalise(change(key, to_float(images)), mean, mean)

    changes = {
        "normalise alone": lambda key, images: images,
        "crop + flip": functools.partial(augment, crop_padding=4, flip=True),
        "resized crop + flip": functools.partial(augment, resized_crop=(0.08, 1.0), flip=True),
    }
    functions = {name: jax.jit(functools.partial(prepare, change)) for name, change in changes.items()}
    images = jax.device_put(batch["image"])
    times = {name: [] for name in functions}
    for function in functions.values():
        function(key, images).block_until_ready()
    for name in list(functions) * rounds:
        start = time.perf_counter()
        functions[name](key, images).block_until_ready()
        times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in times.items()}


def print_photograph(rounds: int) -> None:
    """Print the table of one photograph."""
    import PIL

    times = photograph_times(rounds=2 * rounds)
    before = times["before: a copy to NumPy between decoding and resizing"]
    print(f"\na JPEG photograph of 500×400 to {CANVAS}×{CANVAS}, processor time of one core\n")
    print(f"| a photograph, Pillow {PIL.__version__} | ms | photographs/s per core | × before |")
    print("| --- | --- | --- | --- |")
    for name, milliseconds in times.items():
        ratio = f"{before / milliseconds:.2f}" if "Decoder" in name else "–"
        print(f"| {name} | {milliseconds:.2f} | {1e3 / milliseconds:,.0f} | {ratio} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4096, help="images in the source")
    parser.add_argument("--size", type=int, default=32, help="height and width, pixels")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--images", type=int, default=2048, help="images per round that Grain streams")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24, help="steps per round of input and step together")
    parser.add_argument("--threads", type=int, default=4, help="decoding threads")
    parser.add_argument("--num_workers", type=int, default=0, help="worker processes for one more Grain loader")
    parser.add_argument("--photograph", action="store_true", help="only the processor time of one photograph")
    args = parser.parse_args()
    if args.photograph:
        return print_photograph(args.rounds)

    source = PngSource(args.n, args.size)
    fields = {"batch_size": args.batch_size, "seed": 0, "prefetch": PREFETCH}
    start = time.perf_counter()
    loaders = {"memory": create_loader(source, kind="memory", threads=args.threads, **fields)}
    decoding = time.perf_counter() - start
    for threads in sorted({1, args.threads}):
        loaders[f"grain, threads={threads}"] = create_loader(source, kind="grain", threads=threads, **fields)
    if args.num_workers:
        workers = create_loader(source, kind="grain", threads=1, num_workers=args.num_workers, **fields)
        loaders[f"grain, num_workers={args.num_workers}"] = workers

    print(f"{args.n} PNG images of {args.size}×{args.size}×3, batches of {args.batch_size}")
    print(f"  decoding once into memory: {decoding:.2f} s, {args.n / decoding:,.0f} images/s")
    rates = loader_rates(loaders, images=args.images, batch_size=args.batch_size, rounds=args.rounds)
    print("\n| loader | images/s | memory is × as fast |\n| --- | --- | --- |")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rates['memory'] / rate:.1f} |")
    print(f"\non {jax.devices()[0].device_kind}, a batch of {args.batch_size}\n")
    print("| augmentation | ms |\n| --- | --- |")
    for name, milliseconds in augmentation_times(loaders["memory"].batch(0), rounds=4 * args.rounds).items():
        print(f"| {name} | {milliseconds:.2f} |")

    print_photograph(args.rounds)
    print_together(args, loaders["memory"])


if __name__ == "__main__":
    main()
