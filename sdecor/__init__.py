"""SaliencyDecor in JAX: training whose gradient saliency comes out sharp and on the object, and its measurement."""

from sdecor import attribution, data, losses, masking, metrics, models, report
from sdecor.attribution import explain
from sdecor.losses import classification, consistency, decorrelation
from sdecor.masking import fill, least_salient
from sdecor.models import Tap, create_model, frozen_statistics

__version__ = "0.1.0"

__all__ = [
    "Tap",
    "attribution",
    "classification",
    "consistency",
    "create_model",
    "data",
    "decorrelation",
    "explain",
    "fill",
    "frozen_statistics",
    "least_salient",
    "losses",
    "masking",
    "metrics",
    "models",
    "report",
]
