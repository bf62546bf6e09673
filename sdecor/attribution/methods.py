"""The methods by name."""

from collections.abc import Callable
from typing import Any

from sdecor.attribution.blur_paths import blur_integrated_gradients
from sdecor.attribution.cams import grad_cam, grad_cam_plus_plus, guided_grad_cam, hires_cam, layer_cam
from sdecor.attribution.deeplift import deeplift
from sdecor.attribution.gradients import gradient, input_x_gradient
from sdecor.attribution.guided import deconvnet, guided_backpropagation
from sdecor.attribution.guided_paths import guided_integrated_gradients
from sdecor.attribution.lrp import lrp
from sdecor.attribution.noise import smoothgrad, squaregrad, vargrad
from sdecor.attribution.paths import expected_gradients, integrated_gradients
from sdecor.attribution.perturbation import occlusion, rise

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
