"""A tiny network and split, evaluated once for the tests of evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.evaluation import (
    IGNORE,
    RANDOM,
    Results,
    Setup,
    Subject,
    choose_methods,
    extend,
    groups_of,
    measure,
    predict,
)

RNG = np.random.default_rng(0)
COUNT, SIDE, CLASSES = 21, 8, 4
IMAGES = RNG.integers(0, 256, (COUNT, SIDE + 2, SIDE + 2, 3), dtype=np.uint8)
LABELS = RNG.integers(0, CLASSES, COUNT).astype(np.int32)
OBJECTS = (RNG.random((COUNT, SIDE + 2, SIDE + 2)) < 0.3).astype(np.uint8)
OBJECTS[0], OBJECTS[1, :5] = 0, IGNORE
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
QUICK = ("energy_inside", "pointing_game", "gini", "insertion", "deletion")
IMAGES_OF = {"maps": COUNT, "object": COUNT, "network": 12, "attributions": 12, "explanation": 5}
IMAGES_OF |= {"parameters": 5, "set": 9, "mosaic": 8}


class Source:
    """The split, with the interface of `sdecor.data`."""

    labels = LABELS

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict:
        return {"image": IMAGES[index], "label": LABELS[index], "object": OBJECTS[index]}

    def name(self, index: int) -> str:
        return f"image {index}"


def apply(variables, images):
    """Return `(logits, features)` of a two-layer network without BatchNorm, for images of any size."""
    pooled = jax.image.resize(images, (images.shape[0], SIDE, SIDE, 3), "linear")
    features = jax.nn.relu(pooled.reshape(images.shape[0], -1) @ variables["params"]["first"])
    return features @ variables["params"]["second"], features


def apply_fixed(variables, images):
    """Return `(logits, features)` of the same network, for images of one size."""
    features = jnp.tanh(images.reshape(images.shape[0], -1) @ variables["params"]["first"])
    return features @ variables["params"]["second"], features


def variables(seed: int = 0):
    rng = np.random.default_rng(seed)
    first = 0.1 * rng.normal(size=(SIDE * SIDE * 3, 10)).astype(np.float32)
    return {"params": {"first": first, "second": rng.normal(size=(10, CLASSES)).astype(np.float32)}}


def images() -> np.ndarray:
    """Return the images as the network gets them: cropped and normalised."""
    return ((IMAGES[:, 1:-1, 1:-1] / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)


def subject(seed: int = 0, batch_size: int = 24, **changes) -> Subject:
    setup = Setup(apply_fixed, MEAN, STD, size=SIDE)._replace(**changes)
    return Subject(setup, variables(seed), Source(), batch_size)


def measured(
    subject: Subject, predicted: Results, word: str = "gradient", names=QUICK, steps: int = 3, pictures: int = 0
) -> tuple[Results, Results]:
    """Return the metrics `names` of a method, and its pictures."""
    ((method, _),) = choose_methods([word]).values() if word != RANDOM.key else [(RANDOM, True)]
    groups = list(groups_of(names, {"replacement": {"steps": steps}}).values())
    number = {each.name: IMAGES_OF[each.needs] for each in groups}
    return measure(subject, method, groups, images=number, predicted=predicted, pictures=pictures)


@functools.cache
def evaluated(seed: int = 0, names: tuple[str, ...] = QUICK) -> Results:
    """Return predictions and gradient metrics of the split, with the random order's."""
    one = subject(seed)
    results = predict(one)
    for word in ("gradient", RANDOM.key):
        found, _ = measured(one, results, word, names if word != RANDOM.key else ("insertion",))
        results = extend(results, found, word)
    return results
