"""SmoothGrad and its variants: statistics of a method's attributions over noisy copies of an image."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdecor.attribution.gradients import gradient
from sdecor.attribution.inputs import flattened, with_noise
from sdecor.attribution.targets import Target
from sdecor.core.arrays import is_array
from sdecor.core.checks import check_choice, check_count, check_range
from sdecor.core.chunks import moments_over, sum_over

STATISTICS = ("mean", "mean_square", "variance")


class Noise(NamedTuple):
    """Noisy copies of an image, and the statistic of their attributions.

    Attributes:
      samples: number of copies.
      scale: standard deviation of the Gaussian noise, as a share of the image's range (max − min) if `relative`,
        otherwise in input units.
      relative: see `scale`.
      statistic: statistic of the copies' attributions: "mean" (SmoothGrad), "mean_square" (SmoothGrad², SquareGrad) or
        "variance" (VarGrad).
    """

    samples: int = 25
    scale: float = 0.15
    relative: bool = True
    statistic: str = "mean"


def smoothed(method: Callable[..., jax.Array], noise: Noise) -> Callable[..., jax.Array]:
    """Wrap a method so that it explains noisy copies of the image and returns a statistic of their attributions.

    Args:
      method: `method(fn, image, target, *, …options)`, as in `METHODS`.
      noise: see `Noise`.

    Returns:
      A method with the options of `method`, `key` and `chunk_size`. It explains `chunk_size` copies at once (each with
      one evaluation at a time) and keeps running sums.
    """
    check_choice("statistic", noise.statistic, STATISTICS)
    check_count("samples", noise.samples)
    check_range("scale", noise.scale, 0)
    signature = inspect.signature(method)
    inner = set(signature.parameters)

    def noisy(
        fn: Callable[[jax.Array], jax.Array],
        image: jax.Array,
        target: Target,
        *,
        key: jax.Array,
        chunk_size: int | None = None,
        **options: Any,
    ) -> jax.Array:
        if options.get("with_error") and noise.statistic != "mean":
            raise ValueError(
                f"with_error = True: there is no completeness error of a {noise.statistic!r}, only of a mean"
            )

        def sample(i: jax.Array) -> jax.Array:
            draw, rest = jax.random.split(jax.random.fold_in(key, i))
            own = {"key": rest} if "key" in inner else {}
            own |= {"chunk_size": 1} if "chunk_size" in inner else {}
            copy = with_noise(draw, image, noise.scale, noise.relative)
            return method(fn, copy, target, **own, **options)

        if noise.statistic == "variance":
            restore = flattened(image)[1] if not is_array(image) else lambda found: found
            values = sample if is_array(image) else lambda i: flattened(sample(i))[0]
            return restore(moments_over(values, noise.samples, at_once=chunk_size)[1])
        square = noise.statistic == "mean_square"
        term = (lambda i: jax.tree.map(jnp.square, sample(i))) if square else sample
        total = sum_over(term, noise.samples, at_once=chunk_size)
        return jax.tree.map(lambda x: x / noise.samples, total)

    noisy.__signature__ = _with_options_of(noisy, signature)
    return noisy


def smoothgrad(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    key: jax.Array,
    samples: int = 25,
    scale: float = 0.15,
    relative: bool = True,
    saliency_of: str = "logit",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the mean gradient over noisy copies of the image.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: the class to explain, a `Contrast` of two classes, or a function of the logits.
      key: random key for the noise.
      samples: number of copies.
      scale: standard deviation of the noise: see `Noise`.
      relative: whether `scale` is a share of the image's range.
      saliency_of: score of the target: "logit", "log_probability" or "probability".
      chunk_size: copies explained at once.

    Returns:
      Signed attribution `[H, W, C]` in score units per input unit.

    References:
      Smilkov et al., "SmoothGrad", https://arxiv.org/abs/1706.03825, 2017.
    """
    noise = Noise(samples, scale, relative, "mean")
    return smoothed(gradient, noise)(fn, image, target, key=key, saliency_of=saliency_of, chunk_size=chunk_size)


def squaregrad(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    key: jax.Array,
    samples: int = 25,
    scale: float = 0.15,
    relative: bool = True,
    saliency_of: str = "logit",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the mean squared gradient over noisy copies ("SmoothGrad squared"), `[H, W, C]` ≥ 0.

    See `smoothgrad` for the arguments.

    References:
      Hooker et al., "A Benchmark for Interpretability Methods", https://arxiv.org/abs/1806.10758, 2019.
    """
    noise = Noise(samples, scale, relative, "mean_square")
    return smoothed(gradient, noise)(fn, image, target, key=key, saliency_of=saliency_of, chunk_size=chunk_size)


def vargrad(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    key: jax.Array,
    samples: int = 25,
    scale: float = 0.15,
    relative: bool = True,
    saliency_of: str = "logit",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the variance (over `samples`, not `samples − 1`) of the gradient over noisy copies, `[H, W, C]` ≥ 0.

    See `smoothgrad` for the arguments.

    References:
      Adebayo et al., "Sanity Checks for Saliency Maps", https://arxiv.org/abs/1810.03292, 2018.
    """
    noise = Noise(samples, scale, relative, "variance")
    return smoothed(gradient, noise)(fn, image, target, key=key, saliency_of=saliency_of, chunk_size=chunk_size)


def _with_options_of(noisy: Callable[..., Any], signature: inspect.Signature) -> inspect.Signature:
    """Return the signature of `noisy` with the wrapped method's options added by name."""
    own = inspect.signature(noisy).parameters
    fixed = [p for name, p in own.items() if name != "options"]
    added = [p for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY and name not in own]
    return inspect.Signature([*fixed, *added])
