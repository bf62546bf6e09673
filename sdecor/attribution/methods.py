"""The attribution methods: one row a method, with all that is known of it."""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from sdecor.attribution.baselines import Baseline, blurred
from sdecor.attribution.cams import grad_cam, grad_cam_plus_plus, guided_grad_cam, hires_cam, layer_cam
from sdecor.attribution.gradients import gradient, input_x_gradient
from sdecor.attribution.guided_paths import guided_integrated_gradients, path_bounds
from sdecor.attribution.noise import Noise, smoothgrad, squaregrad, vargrad
from sdecor.attribution.paths import blur_integrated_gradients, expected_gradients, integrated_gradients, quadrature
from sdecor.attribution.perturbation import checked_pair, occlusion, rise, window_starts
from sdecor.attribution.propagation import deconvnet, deeplift, guided_backpropagation, lrp, rules_of
from sdecor.core.checks import check_choice, check_count


class Cost(NamedTuple):
    """Evaluations for one image.

    Attributes:
      forward: forward evaluations alone.
      gradient: forward evaluations with the backward one to the image.
    """

    forward: int
    gradient: int


# What an attribution adds up to, exactly or as far as its approximation goes.
ABOVE_BASELINE = "score − score of the baseline"
ABOVE_MEAN = "score − mean score of the drawn baselines"
SCORE = "score"


def _own_baseline(options: Mapping[str, Any]) -> Baseline | None:
    return options.get("baseline")


class MethodInfo(NamedTuple):
    """All that is known of an attribution method.

    Attributes:
      function: `method(fn, image, target, *, …options)` of one image, a pure function. One that draws also has `key`;
        one that evaluates `fn` many times also `chunk_size`, the evaluations in flight for this image.
      title: its name in a report.
      cost: from the image's shape and the value of every option to the evaluations for one image; None = not known.
      sums_to: `ABOVE_BASELINE`, `ABOVE_MEAN` or `SCORE` for attributions that are contributions, in score units. None
        for those that are slopes, in score units per input unit, or in units of their own.
      baseline: from the value of every option to the baseline that attributions are relative to, see `baseline_image`;
        None where there is none. By default the option `baseline`, where the method has it.
      signed: whether attributions can be negative, with the default options.
      presets: those of an evaluation that have the method, beside "full", which has all.
    """

    function: Callable[..., Any]
    title: str
    cost: Callable[[tuple[int, int, int], dict[str, Any]], Cost] | None = None
    sums_to: str | None = None
    baseline: Callable[[Mapping[str, Any]], Baseline | None] = _own_baseline
    signed: bool = True
    presets: tuple[str, ...] = ()

    @property
    def with_error(self) -> bool:
        """Whether the method has the option `with_error`, which returns the completeness error too."""
        return "with_error" in inspect.signature(self.function).parameters


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


def _one_forward(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    return Cost(1, 0)


def _one_gradient(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    return Cost(0, 1)


# fmt: off
METHOD_INFO: dict[str, MethodInfo] = {
    info.function.__name__: info
    for info in (
        MethodInfo(
            gradient, "Gradient", _one_gradient, presets=("quick", "standard")),
        MethodInfo(
            input_x_gradient, "Input × gradient", _one_gradient, sums_to=ABOVE_BASELINE,
            baseline=lambda options: "zero", presets=("standard",)),
        MethodInfo(
            smoothgrad, "SmoothGrad", _samples, presets=("standard",)),
        MethodInfo(
            squaregrad, "SquareGrad", _samples, signed=False),
        MethodInfo(
            vargrad, "VarGrad", _samples, signed=False),
        MethodInfo(
            integrated_gradients, "Integrated gradients", _path, sums_to=ABOVE_BASELINE, presets=("standard",)),
        MethodInfo(
            expected_gradients, "Expected gradients", _expected_gradients, sums_to=ABOVE_MEAN,
            baseline=lambda options: options["baselines"]),
        MethodInfo(
            blur_integrated_gradients, "Blur integrated gradients", _path, sums_to=ABOVE_BASELINE,
            baseline=lambda options: partial(blurred, sigma=options["max_sigma"])),
        MethodInfo(
            guided_integrated_gradients, "Guided integrated gradients", _guided_path, sums_to=ABOVE_BASELINE),
        MethodInfo(
            grad_cam, "Grad-CAM", _one_forward, signed=False, presets=("standard",)),
        MethodInfo(
            grad_cam_plus_plus, "Grad-CAM++", _one_forward, signed=False),
        MethodInfo(
            layer_cam, "LayerCAM", _one_forward, signed=False),
        MethodInfo(
            hires_cam, "HiResCAM", _one_forward),
        MethodInfo(
            guided_backpropagation, "Guided backpropagation", _one_gradient, presets=("standard",)),
        MethodInfo(
            deconvnet, "DeconvNet", _one_gradient),
        MethodInfo(
            guided_grad_cam, "Guided Grad-CAM", _one_gradient),
        MethodInfo(
            deeplift, "DeepLIFT", _deeplift, sums_to=ABOVE_BASELINE),
        MethodInfo(
            lrp, "LRP", _lrp, sums_to=SCORE, presets=("standard",)),
        MethodInfo(
            occlusion, "Occlusion", _occlusion),
        MethodInfo(
            rise, "RISE", _rise, signed=False),
    )
}
# fmt: on
METHODS: dict[str, Callable[..., Any]] = {name: info.function for name, info in METHOD_INFO.items()}


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
    once = METHOD_INFO[method].cost(image_shape, known | options)
    return once if noise is None else Cost(*(count * noise.samples for count in once))
