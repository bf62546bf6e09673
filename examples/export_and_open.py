"""Export attribution maps of many images to a Zarr group, and open it in xarray and in sdecor.

Run it: python examples/export_and_open.py maps.zarr
"""

import sys

import jax
import numpy as np
import xarray

from sdecor import create_model, data, export

METHODS = ["gradient", "integrated_gradients:steps=16", "grad_cam"]


def main(path="maps.zarr"):
    scenes = data.create_dataset("digit_scenes")
    network = create_model("cnn", num_classes=scenes.num_classes)
    variables = network.init(jax.random.key(0), np.zeros((1, *scenes.image_shape)))  # untrained: load your own here

    def fn(image):  # one image [H, W, C] -> logits [K]
        logits, features = network.apply(variables, image[None])
        return logits[0]

    def batches(size=100):  # any number of images at a time, in the same order at each start
        val = scenes.source("val")
        for start in range(0, len(val), size):
            examples = [val[i] for i in range(start, min(start + size, len(val)))]
            images = data.normalise(np.stack([example["image"] for example in examples]), scenes.mean, scenes.std)
            yield {"image": images, "label": [example["label"] for example in examples]}

    # An interrupted export continues when it is started again; a finished export stays as it is.
    export.export(fn, batches(), path, methods=METHODS, target="label", dtype="float16")

    opened = export.open(path)  # reads maps as float32, for every stored dtype
    print(opened, opened.attribution("gradient", slice(0, 4)).shape)

    stored = xarray.open_zarr(path)  # lazy; float16 maps are stored with a scale for each example
    name = stored.attrs["methods"]["gradient"]
    maps = stored[name].astype("float32") * stored[stored[name].attrs["encoding"]["scale"]]
    print(stored)
    np.testing.assert_array_equal(maps, opened.attribution("gradient"))
    for label, mean in maps.mean(["y", "x"]).groupby(stored["label"]).mean().to_series().items():
        print(f"class {label}: mean saliency {mean:.2e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
