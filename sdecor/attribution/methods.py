"""Table of the attribution methods: function, title, cost and meaning of each."""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from sdecor.attribution.attention import attention_relevance, attention_rollout, legrad
from sdecor.attribution.baselines import Baseline, blurred
from sdecor.attribution.cams import (
    eigen_cam,
    finer_cam,
    grad_cam,
    grad_cam_plus_plus,
    guided_grad_cam,
    hires_cam,
    layer_cam,
    xgrad_cam,
)
from sdecor.attribution.channels import ablation_cam, score_cam
from sdecor.attribution.coalitions import (
    coalition_count,
    feature_ablation,
    fewest_coalitions,
    kernel_shap,
    lime,
    shapley_sampling,
)
from sdecor.attribution.full_gradients import fullgrad
from sdecor.attribution.gradients import gradient, input_x_gradient
from sdecor.attribution.guided_paths import guided_integrated_gradients, path_bounds
from sdecor.attribution.noise import Noise, smoothgrad, squaregrad, vargrad
from sdecor.attribution.paths import blur_integrated_gradients, expected_gradients, integrated_gradients, quadrature
from sdecor.attribution.perturbation import occlusion, rise, windows_of
from sdecor.attribution.propagation import deconvnet, deeplift, guided_backpropagation, lrp, rules_of
from sdecor.attribution.regions import labels_of
from sdecor.core.checks import check_choice, check_count


class Cost(NamedTuple):
    """Number of network evaluations for one image.

    Attributes:
      forward: number of forward evaluations without a backward one.
      gradient: number of forward-and-backward evaluations, down to the image.
    """

    forward: int
    gradient: int


# The sum of an attribution, exact or up to the method's approximation.
ABOVE_BASELINE = "score − score of the baseline"
ABOVE_MEAN = "score − mean score of the drawn baselines"
SCORE = "score"


def _own_baseline(options: Mapping[str, Any]) -> Baseline | None:
    return options.get("baseline")


class MethodInfo(NamedTuple):
    """An attribution method and its properties.

    Attributes:
      function: pure function of one image, `method(fn, image, target, *, …options)`. A method that draws has the option
        `key`. A method that evaluates `fn` many times has `chunk_size`, its evaluations at once for this image.
      title: name in a report.
      cost: function from the image's shape and the values of all options to the evaluations for one image; None =
        unknown.
      sums_to: `ABOVE_BASELINE`, `ABOVE_MEAN` or `SCORE` if attributions are contributions, in score units. None if they
        are slopes, in score units per input unit, or have other units.
      baseline: function from the values of all options to the baseline that attributions are relative to, or None; see
        `baseline_image`. Default: the option `baseline`, if the method has it.
      signed: whether attributions can be negative with the default options.
      presets: evaluation presets that include the method; "full" includes every method.
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
        """Return whether the method has the option `with_error`, which also returns the completeness error."""
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
    _, starts = windows_of(image_shape[:-1], options["window"], options["stride"])
    return Cost(math.prod(map(len, starts)) + 1, 0)


def _own_evaluation(image_shape: tuple[int, ...], options: dict[str, Any]) -> int:
    """Return the evaluations of an image's baseline: 0 if one evaluation per batch serves all images, else 1."""
    baseline = options["baseline"]
    of_one = not callable(baseline) and np.ndim(baseline) <= len(image_shape)
    return int(not (baseline == "zero" if isinstance(baseline, str) else of_one))


def _region_count(image_shape: tuple[int, ...], options: dict[str, Any]) -> int:
    return labels_of(options["regions"], options["count"], jax.ShapeDtypeStruct(image_shape, np.float32))[1]


def _feature_ablation(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    empty = _own_evaluation(image_shape, options) if options["with_error"] else 0
    return Cost(_region_count(image_shape, options) + 1 + empty, 0)


def _shapley_sampling(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    check_count("samples", options["samples"])
    between = options["samples"] * (_region_count(image_shape, options) - 1)
    return Cost(between + 1 + _own_evaluation(image_shape, options), 0)


def _kernel_shap(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    regions = _region_count(image_shape, options)
    check_count("samples", options["samples"], fewest_coalitions(regions))
    return Cost(coalition_count(options["samples"], regions) + 1 + _own_evaluation(image_shape, options), 0)


def _lime(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    check_count("samples", options["samples"], 2)
    return Cost(options["samples"], 0)


def _deeplift(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    return Cost(_own_evaluation(image_shape, options), 1)


def _lrp(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    """Return LRP's cost.

    Rules with positive parts evaluate each layer a second time, for the positive parts. For "z_plus" a layer whose
    input may be negative takes a third evaluation, which is not counted. For "box" the second evaluation is of the
    bounds, once per batch.
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
            xgrad_cam, "XGrad-CAM", _one_forward, signed=False),
        MethodInfo(
            finer_cam, "Finer-CAM", _one_forward, signed=False),
        MethodInfo(
            eigen_cam, "Eigen-CAM", _one_forward, signed=False),
        MethodInfo(
            score_cam, "Score-CAM", signed=False),
        MethodInfo(
            ablation_cam, "Ablation-CAM", signed=False),
        MethodInfo(
            fullgrad, "FullGrad", _one_gradient, signed=False),
        MethodInfo(
            guided_backpropagation, "Guided backpropagation", _one_gradient, presets=("standard",)),
        MethodInfo(
            deconvnet, "DeconvNet", _one_gradient),
        MethodInfo(
            guided_grad_cam, "Guided Grad-CAM", _one_gradient),
        MethodInfo(
            attention_rollout, "Attention rollout", _one_forward, signed=False),
        MethodInfo(
            attention_relevance, "Attention relevance", _one_gradient, signed=False),
        MethodInfo(
            legrad, "LeGrad", _one_gradient, signed=False),
        MethodInfo(
            deeplift, "DeepLIFT", _deeplift, sums_to=ABOVE_BASELINE),
        MethodInfo(
            lrp, "LRP", _lrp, sums_to=SCORE, presets=("standard",)),
        MethodInfo(
            occlusion, "Occlusion", _occlusion),
        MethodInfo(
            rise, "RISE", _rise, signed=False),
        MethodInfo(
            feature_ablation, "Feature ablation", _feature_ablation, sums_to=ABOVE_BASELINE),
        MethodInfo(
            shapley_sampling, "Shapley value sampling", _shapley_sampling, sums_to=ABOVE_BASELINE),
        MethodInfo(
            kernel_shap, "Kernel SHAP", _kernel_shap, sums_to=ABOVE_BASELINE),
        MethodInfo(
            lime, "LIME", _lime),
    )
}
# fmt: on
METHODS: dict[str, Callable[..., Any]] = {name: info.function for name, info in METHOD_INFO.items()}


def cost(method: str, image_shape: tuple[int, int, int], *, noise: Noise | None = None, **options: Any) -> Cost:
    """Return the number of network evaluations that a method needs for one image.

    Args:
      method: a name in `METHODS`.
      image_shape: `(H, W, C)`.
      noise: as in `explain`; the cost is multiplied by the number of copies.
      **options: options of the method that differ from its defaults.

    Returns:
      Evaluations in the compiled program, where two parts of a method, or all images, share common evaluations. Two
      costs are not counted: the backward evaluation down to a layer in methods that explain a layer, and half of the
      first layer's cost in LRP's rules with positive parts. For a `rule` that is a function, it is the largest cost.

    Raises:
      ValueError: for an unknown method or option, and for options that the method itself rejects.
    """
    check_choice("method", method, METHODS)
    parameters = inspect.signature(METHODS[method]).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for option in options:
        check_choice(f"option of method {method!r}", option, known)
    if METHOD_INFO[method].cost is None:
        raise ValueError(f"method = {method!r}: its cost depends on the number of channels of the layer")
    once = METHOD_INFO[method].cost(image_shape, known | options)
    return once if noise is None else Cost(*(count * noise.samples for count in once))
