"""Tests of targets that are functions of any output, and of the messages about outputs and targets that do not fit."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdecor.attribution import METHODS, explain

KEY = jax.random.key(0)
_RNG = np.random.default_rng(0)
KERNEL, HEAD = (jnp.asarray(_RNG.normal(size=shape), jnp.float32) for shape in ((3, 3, 2, 4), (4, 9)))
IMAGES = jnp.asarray(_RNG.normal(size=(2, 6, 6, 2)), jnp.float32)


def detector(image):
    """Return boxes `[3, 4]` and scores `[3, 3]`, as a detector does."""
    numbers = ("NHWC", "HWIO", "NHWC")
    with jax.named_scope("stem"):
        x = jax.nn.relu(jax.lax.conv_general_dilated(image[None], KERNEL, (1, 1), "SAME", dimension_numbers=numbers))
    scores = (x.mean((1, 2)) @ HEAD).reshape(3, 3)
    return {"boxes": (scores @ jnp.ones((3, 4)), jnp.arange(3)), "scores": scores}


def logits(image):
    return detector(image)["scores"].ravel()


FEW = {"samples": 3, "steps": 2, "window": 3, "layer": "stem", "saliency_of": "logit"}
SOME = [
    "gradient",
    "smoothgrad",
    "integrated_gradients",
    "grad_cam",
    "guided_backpropagation",
    "deeplift",
    "lrp",
    "rise",
]


def every_map(fn, target, images):
    maps = {}
    for name in SOME:
        known = inspect.signature(METHODS[name]).parameters
        options = {option: value for option, value in FEW.items() if option in known}
        maps[name] = explain(fn, images, target, method=name, key=KEY, **options)
    return maps


def test_a_score_inside_a_tree_is_explained_like_the_same_logit():
    expected = jax.jit(partial(every_map, logits, 2 * 3 + 1))(IMAGES)
    found = jax.jit(partial(every_map, detector, lambda output: output["scores"][2, 1]))(IMAGES)
    for name, maps in expected.items():
        np.testing.assert_allclose(found[name], maps, rtol=1e-5, atol=1e-6, err_msg=name)
        assert jnp.abs(maps).max() > 0, name


def test_segmentations_embeddings_regressions_and_pairs_of_image_and_text():
    """Closed forms of linear networks: the gradient is the weighted sum of the rows that the target reads."""
    weights = jnp.asarray(_RNG.normal(size=(72, 5)), jnp.float32)
    embed = lambda image: image.ravel() @ weights  # noqa: E731
    texts = jnp.asarray(_RNG.normal(size=(2, 5)), jnp.float32)
    similarity = jax.tree_util.Partial(lambda text, embedding: embedding @ text, texts)
    found = explain(embed, IMAGES, similarity)  # each image with its own text
    np.testing.assert_allclose(found.reshape(2, 72), texts @ weights.T, rtol=1e-5, atol=1e-5)
    segmentation = lambda image: image * jnp.array([[[2.0, 3.0]]])  # noqa: E731
    inside = explain(segmentation, IMAGES, lambda maps: maps[:3, :, 1].sum())
    np.testing.assert_array_equal(inside[0, ..., 1], np.repeat([3.0, 0.0], 3)[:, None] * np.ones((1, 6)))
    np.testing.assert_array_equal(inside[..., 0], 0)
    number = explain(lambda image: 4 * image.sum(), IMAGES, lambda y: y, method="integrated_gradients", steps=2)
    np.testing.assert_allclose(number, 4 * IMAGES, rtol=1e-6)


@pytest.mark.parametrize(
    ("fn", "change", "message"),
    [
        (detector, {"targets": 0}, r"keys 'boxes', 'scores': return its logits, .*; or explain a score of it"),
        (lambda x: x.sum(), {"targets": 0}, r"fn returned shape \(\), one number.* \[0, z\].* targets=lambda output"),
        (detector, {"targets": lambda o: o["scores"][0]}, r"target function returned shape \(3,\): .* scalar"),
        (detector, {"targets": lambda o: o}, "target function returned a dict"),
        (detector, {"targets": lambda o: o["boxes"][1][0]}, "target function returned dtype int32"),
        (
            detector,
            {"targets": lambda o: o["scores"][0, 0], "method": "grad_cam"},
            r"Name the layer to explain, layer=",
        ),
        (
            detector,
            {"targets": lambda o: o["scores"][0, 0], "saliency_of": "probability"},
            "fn returned a dict with keys 'boxes', 'scores': return its logits",
        ),
        (logits, {"targets": None}, r"targets = None is no target. Pass one class or \[2\] classes.* a function"),
        (logits, {"targets": "cat"}, r"targets = 'cat' is no target"),
        (logits, {"targets": "predict"}, r"did you mean 'predicted'\?"),
        (logits, {"targets": ["cat", "dog"]}, "pass classes, integers from 0, not names"),
        (logits, {"targets": 0, "images": "dog.png"}, r"images holds 'dog.png': pass arrays of numbers"),
        (logits, {"targets": 0, "images": [IMAGES[0], IMAGES[1]]}, r"a list of 2: stack .*jnp.stack\(images\)"),
    ],
)
def test_errors_name_the_right_form(fn, change, message):
    with pytest.raises(ValueError, match=message):
        explain(**{"fn": fn, "images": IMAGES} | change)
