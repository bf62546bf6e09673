"""FORGrad: attributions without their high spatial frequencies, which max pooling and strides add to gradients."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.inputs import positions_of
from sdecor.core.arrays import widened
from sdecor.core.checks import check_range


def low_pass(attribution: jax.Array, cutoff: float) -> jax.Array:
    """Return an attribution without its high spatial frequencies (an ideal low pass).

    Along an axis of n positions, frequencies above `cutoff / 2 · n / W` cycles per axis are removed, for the longest
    side W: `cutoff` is the number of frequencies that are kept along this side.

    Args:
      attribution: `[*positions, C]`, such as `[H, W, C]`; each channel is filtered.
      cutoff: number in (0, W]; W keeps everything.

    Returns:
      Array in the shape of `attribution`, at least float32. Its sum is unchanged.
    """
    sides = positions_of(attribution, "low_pass")
    check_range("cutoff", cutoff, 0, max(sides), low_open=True)
    values = widened(attribution)
    for axis, side in enumerate(sides):
        kept = jnp.asarray(_projection(side, cutoff / max(sides)), values.dtype)
        values = jnp.moveaxis(jnp.tensordot(kept, values, (1, axis), precision="highest"), 0, axis)
    return values


def low_passed(method: Callable[..., Any], cutoff: float) -> Callable[..., Any]:
    """Wrap a method so that its attribution loses its high frequencies: FORGrad with a gradient method.

    Args:
      method: `method(fn, image, target, *, …options)`, as in `METHODS`, for inputs with positions.
      cutoff: see `low_pass`; `choose_cutoff` finds it on validation images. The paper's is about 15 at 224 pixels.

    Returns:
      A method with the options of `method`. With `with_error`, the error is that of the unfiltered attribution, whose
      sum the filter keeps.

    References:
      Muzellec et al., "Saliency strikes back: How filtering out high frequencies improves white-box explanations",
      https://arxiv.org/abs/2307.09591, 2023.
    """

    @functools.wraps(method)
    def filtered(fn: Callable[..., Any], image: jax.Array, target: Any, **options: Any) -> Any:
        found = method(fn, image, target, **options)
        return (low_pass(found[0], cutoff), *found[1:]) if isinstance(found, tuple) else low_pass(found, cutoff)

    return filtered


class Cutoff(NamedTuple):
    """A cut-off that was chosen on validation images.

    Attributes:
      best: the cut-off of the best mean score.
      cutoffs: the cut-offs that were tried.
      scores: mean score of each, in the same order.
    """

    best: float
    cutoffs: tuple[float, ...]
    scores: tuple[float, ...]


def choose_cutoff(
    attributions: jax.Array,
    score: Callable[[jax.Array], jax.Array],
    *,
    cutoffs: Sequence[float] | None = None,
    higher_is_better: bool = True,
) -> Cutoff:
    """Choose the cut-off of `low_pass` by the mean score of the filtered attributions of validation images.

    Args:
      attributions: of validation images, unfiltered, `[N, *positions, C]`.
      score: function from filtered attributions to one number for each example, `[N]`, such as the insertion of their
        maps minus the deletion; NaN is left out. It is compiled once.
      cutoffs: cut-offs to try. Default: up to ten from 2 to the longest side, in equal ratios.
      higher_is_better: whether the best score is the highest.

    Returns:
      The best cut-off, with all scores; the larger of two equally good ones.

    Raises:
      ValueError: for a cut-off out of range, and for scores of which none is a number.
    """
    largest = max(positions_of(attributions[0], "choose_cutoff"))
    tried = np.unique(np.geomspace(min(2, largest), largest, 10).round()) if cutoffs is None else np.asarray(cutoffs)
    for cutoff in tried:
        check_range("cutoffs", float(cutoff), 0, largest, low_open=True)
    scored = jax.jit(score)
    filtered = (jax.vmap(functools.partial(low_pass, cutoff=float(cutoff)))(attributions) for cutoff in tried)
    means = np.array([_mean(np.asarray(scored(maps), np.float64)) for maps in filtered])
    if not np.isfinite(means).any():
        raise ValueError("score gave no number for any cut-off: its values are all NaN or infinite")
    order = np.where(np.isfinite(means), means if higher_is_better else -means, -np.inf)
    best = max(range(len(tried)), key=lambda i: (order[i], tried[i]))
    return Cutoff(float(tried[best]), tuple(map(float, tried)), tuple(map(float, means)))


def _mean(scores: np.ndarray) -> float:
    """Return the mean of the scores that are no NaN; NaN if there are none."""
    known = scores[~np.isnan(scores)]
    return known.mean() if known.size else np.nan


def _projection(side: int, share: float) -> np.ndarray:
    """Return the matrix `[side, side]` that keeps the frequencies up to a share of the highest, float64."""
    frequencies = np.abs(np.fft.fftfreq(side)) * 2  # 1 is the highest
    spectrum = np.fft.fft(np.eye(side), axis=0) * (frequencies <= share + 1e-9)[:, None]
    return np.fft.ifft(spectrum, axis=0).real
