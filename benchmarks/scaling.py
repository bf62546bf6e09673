"""Communication of a training step on TPU slices: on paper for 8 to 4,096 chips, and as the TPU compiler has it.

    python benchmarks/scaling.py                      the paper alone, seconds on any machine
    python benchmarks/scaling.py --folder=scaling     also compile each step for v5e slices (requirements-tpu.txt)

No TPU is needed. Compiling ResNet-50 takes 5 to 10 minutes for each slice on two idle cores. Each compiled step has a
JSON file in the folder, so that the command continues where it was stopped. See docs/scaling.md.
"""

import argparse
import json
import pathlib
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from configs import default, imagenet2012
from sdecor import losses
from sdecor.core import files, parallel
from sdecor.training import build, compiled, preview

EXAMPLES = 1_268_355  # of ImageNet, without the validation part
V5E, V5P = compiled.CHIPS["TPU v5 lite"], compiled.CHIPS["TPU v5p"]
SLICES = ((8, V5E), (16, V5E), (64, V5E), (256, V5E), (1024, V5P), (4096, V5P))  # a v5e slice ends at 256 chips
PASSES = {
    "ce": 2,
    "decor": 2,
    "sgt": 5,
    "sdecor": 5,
}  # forwards and pull-backs, each of which combines BatchNorm's moments
TOPOLOGIES = "2x4,4x4,8x8,16x16"


class Sizes(NamedTuple):
    """The sizes of a network that its communication depends on.

    Attributes:
      parameters: number of parameters.
      channels: number of channels with BatchNorm's statistics.
      width: number D of decorrelated features.
      flops: operations of a SaliencyDecor step per image, as XLA counts them before it compiles.
    """

    parameters: int
    channels: int
    width: int
    flops: float


def create_config(model: str, method: str, batch_size: int) -> Any:
    """Return the ImageNet config of a network; "cnn" is a small one on 32×32 with as many features as ResNet-50."""
    if model == "cnn":
        config = default.get_config(f"method={method}")
        config.model.widths, config.model.dtype = (64, 2048), "bfloat16"
        config.data.canvas = 32
    else:
        config = imagenet2012.get_config(f"method={method},model={model}")
    config.train.batch_size = batch_size
    return config


def measure_sizes(model: str) -> Sizes:
    """Trace a network and its SaliencyDecor step; nothing is compiled."""
    batch = 8 * jax.device_count()
    config = create_config(model, "sdecor", batch)
    facts = build.assume_facts(config, 1000, EXAMPLES)
    program = build.create_program(config, facts)
    state = build.state_shapes(config, program.model, program.image_shape, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, *program.image_shape), jnp.float32)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    _, features = jax.eval_shape(lambda v, x: program.model.apply(v, x, train=False), variables, images)
    flops = preview.lower_shapes([config], facts, None, None).cost_analysis()["flops"] / 8
    channels = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats)) // 2
    return Sizes(compiled.parameter_count(state), channels, features.shape[-1], flops)


def paper_bytes(sizes: Sizes, chips: int, images: int, method: str = "sdecor") -> dict[str, float]:
    """Return the bytes that a chip sends in a step, by cause; `images` are those of a chip.

    Of n chips, an all-reduce of B bytes sends 2 B (n − 1) / n, an all-gather or a reduce-scatter half of that.
    """
    once = (chips - 1) / chips
    sent = {
        "gradients": 2 * once * 4 * (sizes.parameters + 2 * sizes.channels),
        "moments": 2 * once * 4 * 2 * sizes.channels * PASSES[method],
    }
    if method == "ce":
        return sent
    samples, width = chips * images, sizes.width
    if samples < width:
        # One all-gather. Before November 2026 the pull-back had a reduce-scatter, or an all-reduce.
        return sent | {"decorrelation": once * 4 * samples * width, "two": 2 * once * 4 * samples * width}
    # One all-reduce. Before November 2026 there was a second one, in the pull-back.
    return sent | {"decorrelation": 2 * once * 4 * width**2, "two": 4 * once * 4 * width**2}


def print_paper(model: str, sizes: Sizes) -> None:
    print(f"\n{model}: {sizes.parameters:,} parameters, {sizes.channels:,} channels of BatchNorm, ", end="")
    print(f"{sizes.width} features, {sizes.flops / 1e9:.1f} GFLOPs an image\n")
    head = ("chips", "images a chip", "side", "gradients, MB", "moments, MB", "decorrelation, MB")
    head += (
        "step at the peak, ms",
        "gradients, ms",
        "decorrelation, ms",
        "share",
        "share before",
        "5 % below",
    )
    print("| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    for chips, chip in SLICES:
        for images in (64, 8):
            sent = paper_bytes(sizes, chips, images)
            milliseconds = {name: 1e3 * count / chip.link for name, count in sent.items()}
            step = 1e3 * images * sizes.flops / chip.flops
            own = milliseconds["decorrelation"]
            side = "N×N" if chips * images < sizes.width else "D×D"
            cells = [f"{chips} {chip.name}", str(images), side]
            cells += [f"{sent[name] / 1e6:.2f}" for name in ("gradients", "moments", "decorrelation")]
            cells += [f"{step:.2f}", f"{milliseconds['gradients']:.2f}", f"{own:.3f}"]
            cells += [f"{own / step:.1%}", f"{milliseconds['two'] / step:.1%}"]
            cells += [f"{own / step / 0.05 * images:.1f} images" if side == "D×D" else "–"]
            print("| " + " | ".join(cells) + " |")


def compile_all(
    folder: pathlib.Path, models: list[str], methods: list[str], topologies: list[str], images: int
) -> None:
    """Compile each step that has no file yet, the small ones first."""
    for model in models:
        for method in methods:
            for topology in topologies:
                path = folder / f"{model}-{method}-v5e-{topology}-{images}.json"
                if not path.exists():
                    compile_one(path, model, method, topology, images)


def compile_one(path: pathlib.Path, model: str, method: str, topology: str, images: int) -> None:
    """Compile a step for a slice and write what it takes."""
    devices = parallel.topology_devices(f"v5e:{topology}")
    config = create_config(model, method, images * len(devices))
    facts = build.assume_facts(config, 1000, EXAMPLES)
    print(f"{time.strftime('%H:%M:%S')} compiling {path.stem}", file=sys.stderr, flush=True)
    step = compiled.compile_timed(preview.lower_shapes([config], facts, None, devices))
    found = compiled.analyse(step, images=images, device=devices[0], devices=len(devices))
    names = {"model": model, "method": method, "topology": topology, "images": images, "devices": len(devices)}
    files.write_json(path, names | found | {"versions": compiled.versions()})


def compile_term(path: pathlib.Path, width: int, topology: str, images: int) -> None:
    """Compile the decorrelation of `width` features with its gradient, alone: half a minute on an idle core."""
    devices = parallel.topology_devices(f"v5e:{topology}")
    features = jax.ShapeDtypeStruct((len(devices), images, width), jnp.float32)
    term = jax.value_and_grad(lambda own: losses.decorrelation(own, axis_name=parallel.AXIS))
    lowered = parallel.pmap_evaluation(lambda _, own, key: term(own), devices).lower((), features, ())
    print(f"{time.strftime('%H:%M:%S')} compiling {path.stem}", file=sys.stderr, flush=True)
    found = compiled.analyse(compiled.compile_timed(lowered), images=images, device=devices[0], devices=len(devices))
    names = {"model": f"the term, D = {width}", "method": "decor", "topology": topology, "images": images}
    files.write_json(path, names | {"devices": len(devices)} | found | {"versions": compiled.versions()})


def print_compiled(folder: pathlib.Path, sizes: dict[str, Sizes]) -> None:
    head = (
        "network",
        "method",
        "slice",
        "images a chip",
        "collectives",
        "MB",
        "MB on paper",
        "GFLOPs",
        "GB",
        "peak, GiB",
    )
    print("\n| " + " | ".join((*head, "compiling, s")) + " |\n" + "| --- " * (len(head) + 1) + "|")
    versions = set()
    for path in sorted(folder.glob("*.json")):
        each = json.loads(path.read_text())
        versions.add(json.dumps({name: each["versions"].get(name) for name in ("jax", "jaxlib", "libtpu")}))
        kinds = ", ".join(f"{found['count']} {kind}" for kind, found in each["collectives"].items())
        moved = sum(found["bytes"] for found in each["collectives"].values()) / 1e6
        cells = [each["model"], each["method"], f"v5e {each['topology']}", str(each["images"]), kinds, f"{moved:.2f}"]
        term = each["model"].startswith("the term")
        if not term and each["model"] not in sizes:
            continue  # a network of another command
        width = int(each["model"].rpartition(" ")[2]) if term else 0
        size = Sizes(0, 0, width, 0.0) if term else sizes[each["model"]]
        cells += [f"{paper_data(size, each, watched=not term) / 1e6:.2f}", f"{each['flops'] / 1e9:,.0f}"]
        cells += [f"{each['bytes'] / 1e9:,.1f}", f"{each['memory']['peak'] / compiled.GIB:.1f}"]
        print("| " + " | ".join([*cells, f"{each['compile_seconds']:.0f}"]) + " |")
    print("\nversions: " + "; ".join(sorted(versions)))


def paper_data(sizes: Sizes, each: dict[str, Any], *, watched: bool) -> float:
    """Return the data of a step's collectives on paper, as `compiled.count_collectives` counts them."""
    data = 4 * (sizes.parameters + 2 * sizes.channels) + 4 * 2 * sizes.channels * PASSES[each["method"]]
    if each["method"] == "ce":
        return data
    samples, width = each["images"] * each["devices"], sizes.width
    matrix = 4 * width**2 if samples >= width else 4 * samples * width  # the Gram side: all samples
    vectors = 3 + 3 * watched  # two means, one pull-back; to log the deviations: a sample, a mean, a mean square
    vectors += 0 if samples >= width else 1  # the Gram side's diagonal
    return data + matrix + vectors * 4 * width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="vit_s,resnet50", help="also cnn, a small network of 2,048 features")
    parser.add_argument("--widths", default="2048,384", help="features of the term that is compiled alone")
    parser.add_argument("--methods", default="sdecor,ce")
    parser.add_argument("--topologies", default=TOPOLOGIES)
    parser.add_argument("--images", type=int, default=64, help="images a chip")
    parser.add_argument("--folder", type=pathlib.Path, help="folder of the compiled steps' files; none: no compilation")
    options = parser.parse_args()
    if not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")
    models = [model for model in options.models.split(",") if model]
    sizes = {model: measure_sizes(model) for model in models}
    for model in models:
        print_paper(model, sizes[model])
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        chosen = options.methods.split(","), options.topologies.split(",")
        for width in map(int, filter(None, options.widths.split(","))):
            for topology in chosen[1]:
                path = options.folder / f"term{width}-v5e-{topology}-{options.images}.json"
                if not path.exists():
                    compile_term(path, width, topology, options.images)
        compile_all(options.folder, models, *chosen, options.images)
        print_compiled(options.folder, sizes)


if __name__ == "__main__":
    main()
