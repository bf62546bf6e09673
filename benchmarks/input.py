"""Images per second of the input pipeline: batches from memory, and the same batches streamed by Grain.

    python benchmarks/input.py --n=4096 --size=32 --batch_size=128

The source is synthetic PNG images of one size, encoded in RAM. The rates therefore include decoding, assembling and
handing over, but no disk. Both are measured in one run, in alternating rounds, and their medians are compared: on a
shared machine the ratio is steadier than either rate. The time of decoding everything once, which memory needs before
its first step, and that of augmentation on the default device are printed too.
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
from collections.abc import Callable

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from sdecor.data.augment import augment, normalise, to_float
from sdecor.data.loader import Loader, create_loader

PREFETCH = 4  # batches


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4096, help="images in the source")
    parser.add_argument("--size", type=int, default=32, help="height and width, pixels")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--images", type=int, default=2048, help="images per round that Grain streams")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=4, help="decoding threads")
    parser.add_argument("--num_workers", type=int, default=0, help="worker processes for one more Grain loader")
    args = parser.parse_args()

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


if __name__ == "__main__":
    main()
