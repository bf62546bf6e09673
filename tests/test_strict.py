"""Tests of public functions under `jax_numpy_dtype_promotion="strict"`; they are traced, nothing is compiled."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import networks
import numpy as np

from sdecor import attribution, losses, masking, metrics, models
from sdecor.data.augment import augment, center_crop, denormalise, normalise, to_float
from sdecor.training.specification import saliency_decor

N, SIDE, CLASSES = 4, 12, 5
_RNG = np.random.default_rng(0)
IMAGES = _RNG.normal(size=(N, SIDE, SIDE, 3)).astype(np.float32)
MAPS = IMAGES[..., 0]
OBJECTS = MAPS > 0.3
LABELS = np.arange(N, dtype=np.int32)
LOGITS = _RNG.normal(size=(N, CLASSES)).astype(np.float32)
FEATURES = _RNG.normal(size=(16, 6)).astype(np.float32)
PARAMS = {
    "kernel": _RNG.normal(size=(3, 3, 3, 4)).astype(np.float32),
    "weights": _RNG.normal(size=(4, CLASSES)).astype(np.float32),
}
KEY = jax.random.key(0)
DTYPE = jnp.bfloat16  # mixes with float32 in the code; integers mix with any dtype


def network(params, image: jax.Array) -> jax.Array:
    kernel, weights = (params[name].astype(image.dtype) for name in ("kernel", "weights"))
    layout = ("NHWC", "HWIO", "NHWC")
    maps = jax.lax.conv_general_dilated(image[None], kernel, (1, 1), "SAME", dimension_numbers=layout)
    return jax.nn.relu(maps).mean((1, 2))[0] @ weights


fn = partial(network, PARAMS)


def attentive(image: jax.Array) -> jax.Array:
    """Return logits of tokens after residual attention, a patch of 4×4 pixels each."""
    x = image.reshape(3, 4, 3, 4, 3).transpose(0, 2, 1, 3, 4).reshape(9, -1)
    return (x + jax.nn.softmax(x @ x.T) @ x).mean(0)[:CLASSES]


def explained_by(method: str) -> Callable[[jax.Array], jax.Array]:
    """Return the function that a method is tried on: one with attention where the method needs it."""
    return attentive if "attention" in method or method == "legrad" else fn


def explain_one(image: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
    return attribution.gradient(fn, image, target)


def explain_with(params, image: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
    return attribution.gradient(partial(network, params), image, target)


def explain_of(f, image: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
    return attribution.gradient(f, image, target)


def strictly(function, *arrays) -> None:
    """Trace a function under strict dtype promotion."""
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(function, *arrays)


def test_losses_and_their_gradients():
    features, logits, images = (jnp.asarray(x, DTYPE) for x in (FEATURES, LOGITS, IMAGES))
    for form in losses.FORMS:
        strictly(jax.value_and_grad(partial(losses.decorrelation, form=form)), features)
    strictly(partial(losses.decorrelation, form="correlation", epsilon=0.1, gram=True), features)
    for function in (losses.variance_hinge, losses.feature_scale, losses.whitening, losses.whitening_residual):
        strictly(function, features)
    for smoothing in (0.0, 0.1):
        total = lambda z, s=smoothing: losses.classification(z, LABELS, label_smoothing=s).sum()  # noqa: E731
        strictly(jax.value_and_grad(total), logits)
    for direction in losses.DIRECTIONS:
        strictly(jax.grad(lambda a, b, d=direction: losses.consistency(a, b, direction=d).sum()), logits, logits)
    strictly(losses.consistency, logits, LOGITS)
    for of in losses.PENALTY_OF:
        strictly(lambda x, of=of: losses.gradient_penalty(lambda x: (jax.vmap(fn)(x), ()), x, LABELS, of=of), images)


def test_the_method_in_one_function():
    def apply(params, images):
        logits = jax.vmap(partial(network, params))(images)
        return logits, logits

    loss = partial(saliency_decor, apply, images=jnp.asarray(IMAGES, DTYPE), labels=LABELS, key=KEY)
    for weight in (0.1, np.float32(0.1)):
        strictly(jax.grad(lambda params, w=weight: loss(params, decorrelation=w, fraction=w)[0]), PARAMS)


def test_masking_and_augmentation():
    images, maps = jnp.asarray(IMAGES, DTYPE), jnp.asarray(MAPS, DTYPE)
    for ranking in masking.RANKINGS:
        strictly(partial(masking.rank_saliency, rank_by=ranking), images)
    for fraction in (0.5, np.float32(0.5)):
        strictly(lambda s, f=fraction: masking.least_salient(KEY, s, fraction=f), maps)
    for how in masking.FILLS:
        strictly(partial(masking.fill, how=how), KEY, images, OBJECTS)
    strictly(partial(augment, crop_padding=2, flip=True), KEY, images)
    strictly(partial(augment, flip=True, resized_crop=(0.3, 1.0), size=8), KEY, images)
    for scale in (normalise, denormalise):
        strictly(partial(scale, mean=(0.5,) * 3, std=(0.2,) * 3), images)
    strictly(partial(center_crop, size=8), images)
    strictly(to_float, jnp.zeros(IMAGES.shape, jnp.uint8))


def test_attribution():
    images = jnp.asarray(IMAGES, DTYPE)
    for method in attribution.METHODS:
        explained = explained_by(method)
        strictly(lambda x, m=method, f=explained: attribution.explain(f, x, LABELS, method=m, key=KEY), images)
    for method, option in (("integrated_gradients", "baseline"), ("expected_gradients", "baselines")):
        for baseline in attribution.BASELINES:
            options = {"method": method, option: baseline, "with_error": True}
            strictly(lambda x, o=options: attribution.explain(fn, x, LABELS, key=KEY, **o), images)
    for method in ("blur_integrated_gradients", "guided_integrated_gradients", "deeplift", "lrp"):
        options = {"method": method, "with_error": True} if method != "deeplift" else {"method": method}
        strictly(lambda x, o=options: attribution.explain(fn, x, "predicted", chunk_size=3, **o), images)
    for rule in ("z_plus", "gamma"):
        strictly(lambda x, r=rule: attribution.explain(fn, x, LABELS, method="lrp", rule=r), images)
    for statistic in ("mean", "mean_square", "variance"):
        noise = attribution.Noise(samples=3, statistic=statistic)
        strictly(lambda x, n=noise: attribution.explain(fn, x, LABELS, noise=n, key=KEY, chunk_size=7), images)
    for score in attribution.SALIENCY_OF:
        strictly(lambda x, s=score: attribution.explain(fn, x, attribution.Contrast(LABELS, 0), saliency_of=s), images)
    for how in attribution.REDUCTIONS:
        strictly(partial(attribution.reduce, how=how), images)
    for how in attribution.NORMALISATIONS:
        strictly(partial(attribution.normalise, how=how), images[..., 0])


def call(name: str, function):
    """Return a metric as a function of images and maps, with its other arguments bound."""
    keyless = ("average_drop", "average_increase", "completeness")
    options = {} if name in keyless else {"key": KEY}
    metric = metrics.METRICS[name]
    if name == "random_logit":
        return lambda x, m: function(explain_one, x, LABELS, num_classes=CLASSES, key=KEY)
    if name in ("adcc", "arcc"):
        return lambda x, m: function(explain_one, fn, x, LABELS, key=KEY)
    if name == "input_invariance":
        return lambda x, m: function(explain_of, fn, x, LABELS, key=KEY)
    if name == "relative_representation_stability":
        return lambda x, m: function(explain_one, fn, fn, x, LABELS, key=KEY)
    if name.startswith("relative_") and metric.needs == "explanation":
        return lambda x, m: function(explain_one, fn, x, LABELS, key=KEY)
    other = jax.tree.map(lambda p: p[::-1], PARAMS)
    return {
        "model": lambda x, m: function(LOGITS) if name == "confidence" else function(LOGITS, LABELS),
        "maps": lambda x, m: function(m),
        "mask": lambda x, m: function(OBJECTS, ignore=m < -1),
        "object": lambda x, m: function(m, OBJECTS, ignore=m < -1),
        "mosaic": lambda x, m: function(m, LABELS),
        "network": lambda x, m: function(fn, x, m, LABELS, **options),
        "attributions": lambda x, m: function(fn, x, x, LABELS, key=KEY),
        "explanation": lambda x, m: function(explain_one, x, LABELS, key=KEY),
        "parameters": lambda x, m: function(explain_with, PARAMS, other, x, LABELS, key=KEY),
    }[metric.needs]


def test_metrics():
    images, maps = jnp.asarray(IMAGES, DTYPE), jnp.asarray(MAPS, DTYPE)
    for name, metric in metrics.METRICS.items():
        strictly(call(name, metric.function), images, maps)
    for function in (metrics.pearson, metrics.spearman, metrics.cosine, metrics.ssim, metrics.histogram_entropy):
        pair = (maps,) if function is metrics.histogram_entropy else (maps, maps)
        strictly(function, *pair)
    strictly(partial(metrics.pointing_game, tolerance=2.5), maps, OBJECTS)
    strictly(metrics.sufficiency, maps, LABELS)
    strictly(metrics.feature_moments, jnp.asarray(FEATURES, DTYPE))
    strictly(partial(metrics.boxes_to_masks, size=(8, 8)), jnp.zeros((N, 4), jnp.int32))
    for perturbation in ("grid", "noise"):
        options = {"perturbation": perturbation, "scaling": "optimal", "key": KEY}
        strictly(lambda x, o=options: metrics.infidelity(fn, x, x, LABELS, **o), images)
    for baseline in metrics.BASELINES:
        strictly(lambda x, m, b=baseline: metrics.deletion(fn, x, m, LABELS, key=KEY, baseline=b), images, maps)


def test_training_step_with_every_term():
    plain = networks.objective(variance=True, saliency_of="log_probability", order="alternate", fill="blur")
    frozen = networks.objective(forward="frozen", form="density", rectify=True, gradient_penalty=True)
    whitened = networks.objective(forward="eval", form="whitening", label_smoothing=0.1)
    with jax.numpy_dtype_promotion("strict"):
        state = jax.eval_shape(lambda: networks.tiny_state(networks.tiny_model("batch"), ema=True))
        for objective in (plain, frozen, whitened):
            step = networks.make_step(objective, ema_decay=0.9)
            jax.eval_shape(step, state, networks.tiny_batch(), networks.hyper(), KEY)


def test_models_and_tapped_layers():
    model = networks.tiny_model("layer")
    tap = models.Tap(model, ("conv0",))
    with jax.numpy_dtype_promotion("strict"):
        shapes = jax.eval_shape(lambda x: tap.init(KEY, x, train=False), IMAGES)
        jax.eval_shape(lambda v, x: tap.apply(v, x, train=False), shapes, IMAGES)
