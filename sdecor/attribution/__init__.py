"""Attribution maps of any function `image [H, W, C] -> logits [K]`, in batch and on the device.

Conventions: images are NHWC and floating point; every method explains one image and is lifted over a batch by
`explain`; what leaves a method is signed and has the image's shape. Reduction over channels (`reduce`) and
scaling (`normalise`) are separate steps, so that no choice is hidden in a method.
"""

from sdecor.attribution.explain import METHODS, explain
from sdecor.attribution.gradients import SALIENCY_OF, gradient, target_score
from sdecor.attribution.reduce import NORMALISATIONS, REDUCTIONS, normalise, reduce

__all__ = [
    "METHODS",
    "NORMALISATIONS",
    "REDUCTIONS",
    "SALIENCY_OF",
    "explain",
    "gradient",
    "normalise",
    "reduce",
    "target_score",
]
