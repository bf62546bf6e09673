"""The terms of the training loss: classification, consistency under masking, decorrelation, gradient penalty.

Conventions: a loss takes arrays and returns one value per example where the mathematics allows. The caller takes the
mean over the batch and multiplies by a weight. Decorrelation is a statistic of the *global* batch and returns a scalar:
inside `pmap` or `vmap(axis_name=…)`, pass the mapped axis as `axis_name` and take the *mean* of the members' gradients.
Losses are computed in float32 or wider, for arguments of any dtype.

Files:
  predictions    cross-entropy, and consistency of clean and masked predictions
  decorrelation  the forms of decorrelation, one function each
  statistics     centring, normalising and whitening of a global batch
  gradients      the gradient penalty
"""

from sdecor.losses.decorrelation import (
    CENTRED as CENTRED,
    FORMS as FORMS,
    decorrelation as decorrelation,
    feature_scale as feature_scale,
    sample_count as sample_count,
    variance_hinge as variance_hinge,
    white_floor as white_floor,
    whitening as whitening,
    whitening_residual as whitening_residual,
)
from sdecor.losses.gradients import PENALTY_OF as PENALTY_OF, gradient_penalty as gradient_penalty
from sdecor.losses.predictions import (
    CLASSIFICATIONS as CLASSIFICATIONS,
    DIRECTIONS as DIRECTIONS,
    classification as classification,
    consistency as consistency,
)
from sdecor.losses.statistics import SPATIALS as SPATIALS
