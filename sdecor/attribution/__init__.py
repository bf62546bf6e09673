"""Attribution maps of any function `image [H, W, C] -> logits [K]`, in batches and on the device.

Conventions: images are NHWC and floating point. A method explains one image, and `explain` lifts it over a batch. A
method returns signed attributions of the image's shape. Reduction over channels (`reduce`) and scaling (`normalise`)
are separate steps, so that no choice is hidden in a method.

Files:
  explain, targets     explain a batch with a method; the explained score
  methods              the table of methods: one row each, with title, cost and presets
  gradients            gradient and input × gradient
  noise                SmoothGrad and other averages over noisy copies
  paths, guided_paths  integrated, expected and blur-integrated gradients; guided integrated gradients
  cams, layers         class activation maps; the layers that they read
  perturbation         occlusion and RISE
  propagation          guided backpropagation, deconvnet, DeepLIFT and LRP, by the rules in `sdecor.rules`
  baselines            baseline images
  reduce               from attributions to maps, and their scaling
  canonical            convolutions with a fast input gradient on CPUs
"""

from sdecor.attribution.baselines import BASELINES, Baseline, baseline_image, blurred
from sdecor.attribution.cams import grad_cam, grad_cam_plus_plus, guided_grad_cam, hires_cam, layer_cam
from sdecor.attribution.explain import explain
from sdecor.attribution.gradients import gradient, input_x_gradient
from sdecor.attribution.guided_paths import guided_integrated_gradients
from sdecor.attribution.methods import ABOVE_BASELINE, ABOVE_MEAN, METHOD_INFO, METHODS, SCORE, Cost, MethodInfo, cost
from sdecor.attribution.noise import Noise, smoothed, smoothgrad, squaregrad, vargrad
from sdecor.attribution.paths import blur_integrated_gradients, expected_gradients, integrated_gradients
from sdecor.attribution.perturbation import occlusion, rise
from sdecor.attribution.propagation import deconvnet, deeplift, guided_backpropagation, lrp
from sdecor.attribution.reduce import NORMALISATIONS, REDUCTIONS, normalise, reduce
from sdecor.attribution.targets import SALIENCY_OF, Contrast, target_score

__all__ = [
    "ABOVE_BASELINE",
    "ABOVE_MEAN",
    "BASELINES",
    "METHODS",
    "METHOD_INFO",
    "NORMALISATIONS",
    "REDUCTIONS",
    "SALIENCY_OF",
    "SCORE",
    "Baseline",
    "Contrast",
    "Cost",
    "MethodInfo",
    "Noise",
    "baseline_image",
    "blur_integrated_gradients",
    "blurred",
    "cost",
    "deconvnet",
    "deeplift",
    "expected_gradients",
    "explain",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient",
    "guided_backpropagation",
    "guided_grad_cam",
    "guided_integrated_gradients",
    "hires_cam",
    "input_x_gradient",
    "integrated_gradients",
    "layer_cam",
    "lrp",
    "normalise",
    "occlusion",
    "reduce",
    "rise",
    "smoothed",
    "smoothgrad",
    "squaregrad",
    "target_score",
    "vargrad",
]
