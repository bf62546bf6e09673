"""Targets of an explanation: a scalar score computed from the network's output for one example."""

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


# A class, two classes, or a function of the network's output to a scalar. The output may be any tree of arrays. A
# function with a parameter for each example is `jax.tree_util.Partial(function, parameters)`, called as
# `function(parameters_of_the_example, output)`.
Target = jax.Array | int | Contrast | Callable[[Any], jax.Array]


def target_score(output: Any, target: Target, *, saliency_of: str = "logit") -> jax.Array:
    """Return the score to explain: the target's logit, log-probability or probability, or a function of the output.

    Args:
      output: the network's output for one example: logits `[K]`; or, if the target is a function, any tree of arrays.
      target: class, integer scalar in [0, K); a `Contrast` of two classes; or a function of the output, or of the `[K]`
        log-probabilities or probabilities, as `saliency_of` says.
      saliency_of: "logit", which leaves the output as it is, "log_probability" or "probability".

    Returns:
      Scalar. A class outside [0, K) gives NaN, and everything derived from it is NaN; indexing alone would silently
      explain the nearest class.

    Raises:
      ValueError: for an unknown `saliency_of`, an output that is not logits `[K]` where a class or a probability is
        asked for, the probability of a single logit, or a function that returns no floating point scalar.
    """
    check_choice("saliency_of", saliency_of, SALIENCY_OF)
    if is_function(target) and saliency_of == "logit":
        return _scalar(target(jax.tree.map(jnp.asarray, output)))
    logits = jnp.asarray(checked_logits(output))  # an interpreted constant function returns a NumPy array
    if saliency_of != "logit":
        check_several(logits.shape[0], ", or follow the logit itself by saliency_of='logit'")
    if saliency_of == "log_probability":
        logits = jax.nn.log_softmax(logits)
    elif saliency_of == "probability":
        logits = jax.nn.softmax(logits)
    if isinstance(target, Contrast):
        return of_class(logits, target.target) - of_class(logits, target.other)
    return _scalar(target(logits)) if is_function(target) else of_class(logits, target)


def is_function(target: Any) -> bool:
    """Return whether a target is a function of the network's output, not a class or a `Contrast`."""
    return callable(target) and not isinstance(target, Contrast)


def _scalar(score: Any) -> jax.Array:
    wanted = "it must map the output of fn for one example to a floating point scalar"
    if not hasattr(score, "shape") and not isinstance(score, float):
        raise ValueError(f"the target function returned a {type(score).__name__}: {wanted}")
    score = jnp.asarray(score)
    if score.shape:
        hint = ", e.g. by sum(), mean() or an index"
        raise ValueError(f"the target function returned shape {score.shape}: {wanted}{hint}")
    if not jnp.issubdtype(score.dtype, jnp.floating):
        raise ValueError(f"the target function returned dtype {score.dtype}: {wanted}")
    return score


# What to do if an output is no vector of logits.
_FUNCTION = "; or explain a score of it, a function: targets=lambda output: …"


def checked_logits(logits: Any) -> Any:
    """Return `logits`, an array `[K]` or its `ShapeDtypeStruct`, unchanged.

    Raises:
      ValueError: for any other output of `fn`; the message names it.
    """
    if isinstance(logits, dict):
        names = ", ".join(map(repr, logits))
        likely = next((name for name in ("logits", *logits) if name in logits), "logits")
        raise ValueError(
            f"fn returned a dict with keys {names}: return its logits, e.g. lambda x: fn(x)[{likely!r}]{_FUNCTION}"
        )
    if not hasattr(logits, "dtype"):
        hint = ", e.g. lambda x: fn(x)[0]" if isinstance(logits, tuple | list) else ""
        raise ValueError(f"fn returned a {type(logits).__name__}: return its logits, an array [K]{hint}{_FUNCTION}")
    if not logits.shape:
        raise ValueError(
            "fn returned shape (), one number, and a class needs logits [K]: of a binary classifier, return [0, z] or "
            "[-z, z]; of a regression, explain the number itself by targets=lambda output: output"
        )
    if len(logits.shape) != 1:
        raise ValueError(
            f"fn returned shape {logits.shape}: it must map one image [H, W, C] to logits [K], with no batch "
            f"axis{_FUNCTION}"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"fn returned dtype {logits.dtype}: it must return logits, which are floating point")
    return logits


def score_of(fn: Callable[[Any], Any], target: Target, *, saliency_of: str = "logit") -> Callable[[Any], jax.Array]:
    """Return the function from one example to the score to explain; its gradient is fast inside loops too."""
    fast = canonical(fn)
    return lambda image: target_score(fast(image), target, saliency_of=saliency_of)
