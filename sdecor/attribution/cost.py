"""What a method costs: evaluations of the network for one image, as a function of its options."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from sdecor.attribution.methods import METHODS
from sdecor.attribution.noise import Noise
from sdecor.checks import check_choice


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
      Evaluations. Of the methods at a layer, the part of a backward evaluation above the layer is not counted.
    """
    check_choice("method", method, METHODS)
    parameters = inspect.signature(METHODS[method]).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for option in options:
        check_choice(f"option of method {method!r}", option, known)
    once = _COSTS[method](image_shape, known | options)
    return once if noise is None else Cost(*(count * noise.samples for count in once))


def _path(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    return Cost(2 if options["with_error"] else 0, options["steps"])


def _expected_gradients(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    return Cost(options["samples"] + 1 if options["with_error"] else 0, options["samples"])


def _samples(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    return Cost(0, options["samples"])


def _occlusion(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    windows = 1
    for axis, side in enumerate(image_shape[:2]):
        size, stride = (
            value[axis] if isinstance(value, tuple) else value for value in (options["window"], options["stride"])
        )
        size = math.ceil(side / 8) if size is None else size
        stride = math.ceil(size / 2) if stride is None else stride
        windows *= math.ceil((side - size) / stride) + 1
    return Cost(windows + 1, 0)


def _lrp(image_shape: tuple[int, ...], options: dict[str, Any]) -> Cost:
    """Positive and negative parts go through a layer apart; the layer that sees the image needs a third part."""
    return Cost(0, 1 if options["rule"] == "epsilon" else 2)


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
    "guided_integrated_gradients": _path,
    "expected_gradients": _expected_gradients,
    "grad_cam": _fixed(1, 0),
    "grad_cam_plus_plus": _fixed(1, 0),
    "layer_cam": _fixed(1, 0),
    "hires_cam": _fixed(1, 0),
    "guided_backpropagation": _fixed(0, 1),
    "deconvnet": _fixed(0, 1),
    "guided_grad_cam": _fixed(1, 1),
    "deeplift": _fixed(1, 1),
    "lrp": _lrp,
    "occlusion": _occlusion,
    "rise": lambda image_shape, options: Cost(options["samples"], 0),
}
