"""The methods by name, and what each costs."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sdecor.attribution.cams import grad_cam, grad_cam_plus_plus, guided_grad_cam, hires_cam, layer_cam
from sdecor.attribution.gradients import gradient, input_x_gradient
from sdecor.attribution.guided_paths import guided_integrated_gradients, path_bounds
from sdecor.attribution.noise import Noise, smoothgrad, squaregrad, vargrad
from sdecor.attribution.paths import blur_integrated_gradients, expected_gradients, integrated_gradients, quadrature
from sdecor.attribution.perturbation import checked_pair, occlusion, rise, window_starts
from sdecor.attribution.propagation import deconvnet, deeplift, guided_backpropagation, lrp, rules_of
from sdecor.core.checks import check_choice, check_count

# A method is a pure function `method(fn, image, target, *, …options)` of one image; one that draws also has `key`, one
# that evaluates `fn` many times also `chunk_size`, the evaluations in flight for this one image.
METHODS: dict[str, Callable[..., Any]] = {
    method.__name__: method
    for method in (
        gradient,
        input_x_gradient,
        smoothgrad,
        squaregrad,
        vargrad,
        integrated_gradients,
        expected_gradients,
        blur_integrated_gradients,
        guided_integrated_gradients,
        grad_cam,
        grad_cam_plus_plus,
        layer_cam,
        hires_cam,
        guided_backpropagation,
        deconvnet,
        guided_grad_cam,
        deeplift,
        lrp,
        occlusion,
        rise,
    )
}


class Cost(NamedTuple):
    """Evaluations for one image.

    Attributes:
      forward: forward evaluations alone.
      gradient: forward evaluations with the backward one to the image.
    """

    forward: int
    gradient: int


def cost(method: str, image_shape: tuple[int, int, int], *, noise: Noise | None = None, **options: Any) -> Cost:
    """Return how often a method evaluates the network for one image.

    Args:
      method: a name in `METHODS`.
      image_shape: `(H, W, C)`.
      noise: as in `explain`: everything is done once for each copy.
      **options: of the method, where they differ from its defaults.

    Returns:
      Evaluations of the compiled program, which evaluates once what two parts of a method, or all images, share. Not
      counted are the part of a backward evaluation above a layer, for the methods at one, and that a network's first
      layer costs half as much again with LRP's rules for positive parts. Of a `rule` that is a function the most.

    Raises:
      ValueError: for an unknown method or option, and for options that the method itself refuses.
    """
    check_choice("method", method, METHODS)
    parameters = inspect.signature(METHODS[method]).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for option in options:
        check_choice(f"option of method {method!r}", option, known)
    once = _COSTS[method](image_shape, known | options)
    return once if noise is None else Cost(*(count * noise.samples for count in once))


def _path(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    quadrature(options["rule"], options["steps"])
    return _of_path(options)


def _guided_path(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    path_bounds(options["steps"], options["max_dist"], options["anchors"])
    return _of_path(options)


def _of_path(options: dict[str, Any]) -> Cost:
    return Cost(2 if options["with_error"] else 0, options["steps"])


def _expected_gradients(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    samples = _samples(image_shape, options).gradient
    return Cost(samples + 1 if options["with_error"] else 0, samples)


def _samples(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    check_count("samples", options["samples"])
    return Cost(0, options["samples"])


def _rise(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    return Cost(_samples(image_shape, options).gradient, 0)


def _occlusion(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    sides, window, stride = image_shape[:2], options["window"], options["stride"]
    window = [math.ceil(side / 8) for side in sides] if window is None else checked_pair("window", window)
    stride = [math.ceil(size / 2) for size in window] if stride is None else checked_pair("stride", stride)
    axes = zip(("height", "width"), sides, window, stride, strict=True)
    return Cost(math.prod(len(window_starts(*axis)) for axis in axes) + 1, 0)


def _deeplift(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    """A baseline that is the same for all images goes through the network once a batch."""
    baseline = options["baseline"]
    for_all = baseline == "zero" if isinstance(baseline, str) else not callable(baseline) and np.ndim(baseline) < 4
    return Cost(0 if for_all else 1, 1)


def _lrp(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    """Positive parts go through a layer beside all of them, those of positive and negative inputs apart.

    For the rule "box" these are the bounds of the image, once a batch.
    """
    rule = options["rule"]
    rules_of(rule, options["low"], options["high"], options["saliency_of"])
    return Cost(0, 1 if rule == "epsilon" else 2)


def _fixed(forward: int, gradient: int) -> Callable[..., Cost]:
    return lambda image_shape, options: Cost(forward, gradient)


_COSTS: dict[str, Callable[[tuple[int, ...], dict[str, Any]], Cost]] = {
    "gradient": _fixed(0, 1),
    "input_x_gradient": _fixed(0, 1),
    "smoothgrad": _samples,
    "squaregrad": _samples,
    "vargrad": _samples,
    "integrated_gradients": _path,
    "blur_integrated_gradients": _path,
    "guided_integrated_gradients": _guided_path,
    "expected_gradients": _expected_gradients,
    "grad_cam": _fixed(1, 0),
    "grad_cam_plus_plus": _fixed(1, 0),
    "layer_cam": _fixed(1, 0),
    "hires_cam": _fixed(1, 0),
    "guided_backpropagation": _fixed(0, 1),
    "deconvnet": _fixed(0, 1),
    "guided_grad_cam": _fixed(0, 1),
    "deeplift": _deeplift,
    "lrp": _lrp,
    "occlusion": _occlusion,
    "rise": _rise,
}
