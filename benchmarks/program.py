"""FLOPs, bytes, memory and collectives of a training step as the TPU compiler has it, each as a multiple of ce.

    python benchmarks/program.py --folder=runs/program                                  all, small networks first
    python benchmarks/program.py --folder=runs/program --networks=cnn --steps='ce;sdecor'
    python benchmarks/program.py --folder=runs/program128 --networks=resnet50 --images=128

Each step is the one that `train.py` runs, compiled for a TPU slice. No TPU is needed (requirements-tpu.txt); nothing is
run. Each compiled step has a JSON file in the folder, so that the command continues where it was stopped. ResNet-50 and
ViT-S take 5 to 30 minutes a step on two cores. benchmarks/step.py has the times on the devices here.

GB are the bytes of `cost_analysis`. HBM is the traffic with the main memory, and "estimate" the cycles of all kernels
(benchmarks/estimate.py).
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import estimate

from configs import cifar10, default, imagenet2012
from sdecor.core import files, parallel
from sdecor.training import build, compiled, preview

EXAMPLES = 1_268_355  # only the schedule depends on it
MIB = 2**20
PASSES = 8  # of the only loop in a step, the search of the k-th smallest saliency, on a TPU


class Network(NamedTuple):
    """A network with its data and batch.

    Attributes:
      config: the file of its config.
      model: name of the model.
      fields: other fields of the config.
      images: images a chip.
      classes: number of classes.
    """

    config: Any
    model: str
    fields: Mapping[str, Any]
    images: int
    classes: int


NETWORKS = {
    "cnn": Network(cifar10, "cnn", {"model.dtype": "bfloat16", "data.canvas": 32}, 128, 10),
    "resnet18": Network(cifar10, "resnet18", {"model.dtype": "bfloat16", "data.canvas": 32}, 128, 10),
    "vit_s": Network(imagenet2012, "vit_s", {}, 64, 1000),
    "resnet50": Network(imagenet2012, "resnet50", {}, 64, 1000),
}
# name -> config string, and other fields of the config
STEPS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "ce": ("method=ce", {}),
    "sdecor": ("method=sdecor", {}),
    "sdecor, frozen": ("method=sdecor", {"masking.forward": "frozen"}),
    "sdecor, eval": ("method=sdecor", {"masking.forward": "eval"}),
    "sdecor, stopped": ("method=sdecor", {"consistency.stop_gradient": True}),
    "sdecor, density": ("method=sdecor,form=density", {}),
    "sdecor, remat": ("method=sdecor", {"model.remat": "blocks"}),
    "sdecor, masked remat": ("method=sdecor", {"masking.remat": True}),
    "sgt": ("method=sgt", {}),
    "decor": ("method=decor", {}),
    "decor, density": ("method=decor,form=density", {}),
}
LEFT_OUT = {("cnn", "sdecor, remat")}  # it has no blocks


def create_config(network: str, step: str, devices: int, images: int) -> Any:
    """Return the config of a network's step for a number of devices with so many images each."""
    row = NETWORKS[network]
    words, fields = STEPS[step]
    config = row.config.get_config(f"{words},model={row.model}")
    if row.config is cifar10 and row.model == "cnn":
        config.optim = default.base().optim
    config.update_from_flattened_dict({**row.fields, **fields})
    config.train.batch_size = images * devices
    return config


def compile_step(
    network: str, step: str, topology: str, images: int, text: pathlib.Path | None = None
) -> dict[str, Any]:
    """Compile a step for a slice; return what one chip takes, and write the compiled program to `text`."""
    devices = parallel.topology_devices(topology)
    config = create_config(network, step, len(devices), images)
    facts = build.assume_facts(config, NETWORKS[network].classes, EXAMPLES)
    done = compiled.compile_timed(preview.lower_shapes([config], facts, None, devices))
    program = done.program.as_text()
    if text:
        text.write_text(program)
    found = compiled.analyse(done, images=images, device=devices[0], devices=len(devices))
    names = {"network": network, "step": step, "topology": topology, "images": images}
    found["kernels"] = estimate.estimate(program, passes=PASSES)._asdict()
    return names | found | {"versions": compiled.versions()}


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers that are compared with ce, by the heads of their columns."""
    return {
        "GFLOPs": found["flops"] / 1e9,
        "GB": found["bytes"] / 1e9,
        "HBM, GB": found["kernels"]["bytes"] / 1e9,
        "temporaries, MiB": found["memory"]["temporaries"] / MIB,
        "estimate, ms": 1e3 * found["kernels"]["cycles"] / estimate.CLOCKS["TPU v5 lite"],
        "collectives": sum(kind["count"] for kind in found["collectives"].values()),
    }


def print_tables(folder: pathlib.Path, networks: Sequence[str], topology: str) -> None:
    """Print a table for each of the networks that has a compiled ce."""
    for network in networks:
        paths = {step: path_of(folder, network, step, topology) for step in STEPS}
        found = {step: json.loads(path.read_text()) for step, path in paths.items() if path.exists()}
        if "ce" not in found:
            continue
        base = numbers(found["ce"])
        print(f"\n{network}, {found['ce']['images']} images a chip, {topology}\n")
        heads = ["step", *(head for name in base for head in (name, "×")), "compiling, s"]
        print(f"| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
        for step, each in found.items():
            own = numbers(each)
            cells = [cell for name in own for cell in (f"{own[name]:,.4g}", f"{own[name] / base[name]:.2f}")]
            seconds = f"{each['compile_seconds']:.0f}"
            print(f"| {' | '.join([step, *cells, seconds])} |")


def path_of(folder: pathlib.Path, network: str, step: str, topology: str) -> pathlib.Path:
    """Return the file of a compiled step."""
    return folder / f"{network}-{step.replace(', ', '-')}-{topology.replace(':', '-')}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="folder of the compiled steps' files")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--steps", default=";".join(STEPS), help="separated by ;")
    parser.add_argument("--images", type=int, help="images a chip, by default the network's; a folder for each number")
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--text", action="store_true", help="also write the compiled programs, NAME.hlo")
    options = parser.parse_args()
    if not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")
    options.folder.mkdir(parents=True, exist_ok=True)
    networks = options.networks.split(",")
    for network in networks:
        for step in options.steps.split(";"):
            path = path_of(options.folder, network, step, options.topology)
            images = options.images or NETWORKS[network].images
            if path.exists() and (stored := json.loads(path.read_text())["images"]) != images:
                sys.exit(f"{path} is of {stored} images a chip, not of {images}: give another --folder")
            if path.exists() or (network, step) in LEFT_OUT:
                continue
            print(f"{time.strftime('%H:%M:%S')} compiling {path.stem}", file=sys.stderr, flush=True)
            text = path.with_suffix(".hlo") if options.text else None
            files.write_json(path, compile_step(network, step, options.topology, images, text))
    print_tables(options.folder, networks, options.topology)


if __name__ == "__main__":
    main()
