"""Targets of an explanation: a scalar score computed from the logits of one image."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdecor.attribution.canonical import canonical
from sdecor.core.checks import check_choice
from sdecor.core.classes import check_several, of_class

SALIENCY_OF = ("logit", "log_probability", "probability")


class Contrast(NamedTuple):
    """Two classes whose difference of scores is explained: the score of `target` minus that of `other`.

    For a batch, each is `[N]` or one integer for all images.
    """

    target: jax.Array | int
    other: jax.Array | int


# A class, two classes, or a function of the logits `[K] -> scalar`. A function with a parameter for each example is
# `jax.tree_util.Partial(function, parameters)`, called as `function(parameters_of_the_example, logits)`.
Target = jax.Array | int | Contrast | Callable[[jax.Array], jax.Array]


def target_score(logits: jax.Array, target: Target, *, saliency_of: str = "logit") -> jax.Array:
    """Return the score to explain: the target's logit, log-probability or probability.

    Args:
      logits: logits of one image, `[K]`.
      target: class, integer scalar in [0, K); a `Contrast` of two classes; or a function of the `[K]` logits,
        log-probabilities or probabilities, as `saliency_of` says.
      saliency_of: "logit", "log_probability" or "probability".

    Returns:
      Scalar. A class outside [0, K) gives NaN, and everything derived from it is NaN; indexing alone would silently
      explain the nearest class.

    Raises:
      ValueError: for an unknown `saliency_of`, logits that are not `[K]`, the probability of a single logit, or a
        function that returns no scalar.
    """
    check_choice("saliency_of", saliency_of, SALIENCY_OF)
    logits = jnp.asarray(checked_logits(logits))  # an interpreted constant function returns a NumPy array
    if saliency_of != "logit":
        check_several(logits.shape[0], ", or follow the logit itself by saliency_of='logit'")
    if saliency_of == "log_probability":
        logits = jax.nn.log_softmax(logits)
    elif saliency_of == "probability":
        logits = jax.nn.softmax(logits)
    if isinstance(target, Contrast):
        return of_class(logits, target.target) - of_class(logits, target.other)
    if not callable(target):
        return of_class(logits, target)
    score = jnp.asarray(target(logits))
    if score.shape:
        raise ValueError(f"the target function returned shape {score.shape}: it must map logits [K] to a scalar")
    return score


def checked_logits(logits: Any) -> Any:
    """Return `logits`, an array `[K]` or its `ShapeDtypeStruct`, unchanged.

    Raises:
      ValueError: for any other output of `fn`; the message names it.
    """
    if isinstance(logits, dict):
        names = ", ".join(map(repr, logits))
        likely = next((name for name in ("logits", *logits) if name in logits), "logits")
        raise ValueError(f"fn returned a dict with keys {names}: return its logits, e.g. lambda x: fn(x)[{likely!r}]")
    if not hasattr(logits, "dtype"):
        hint = ", e.g. lambda x: fn(x)[0]" if isinstance(logits, tuple | list) else ""
        raise ValueError(f"fn returned a {type(logits).__name__}: return its logits, an array [K]{hint}")
    if len(logits.shape) != 1:
        raise ValueError(
            f"fn returned shape {logits.shape}: it must map one image [H, W, C] to logits [K], with no batch axis"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"fn returned dtype {logits.dtype}: it must return logits, which are floating point")
    return logits


def score_of(
    fn: Callable[[jax.Array], jax.Array], target: Target, *, saliency_of: str = "logit"
) -> Callable[[jax.Array], jax.Array]:
    """Return the function from one image to the score to explain; its gradient is fast inside loops too."""
    fast = canonical(fn)
    return lambda image: target_score(fast(image), target, saliency_of=saliency_of)
