"""A batch of explained examples, as the functions of metrics see it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from sdecor import metrics

Fn = Callable[[jax.Array], jax.Array]

PARAMETER_SEED = 0  # of the random parameters, the same for every image


class Context(NamedTuple):
    """A batch of n examples, explained by one method.

    Attributes:
      images: as the network takes them, `[n, H, W, C]`.
      targets: classes explained, int `[n]`.
      labels: the right classes, int `[n]`.
      maps: the attributions reduced over channels, `[n, H, W]`.
      signed: their sum over channels, `[n, H, W]`: a pixel contributes what its channels do.
      objects: bool `[n, H, W]`, or None where the data set has no masks.
      ignore: bool `[n, H, W]`, pixels that count neither as object nor as background; or None.
      keys: `[n]`, for what a metric draws.
      explanation_keys: `[n]`, those that the attributions were made with.
      chunk_size: network evaluations in flight.
      num_classes: of the network.
      params: the network's parameters.
      fn_of: the network of given parameters, `params -> (image [H, W, C] -> logits [K])`.
      features_fn: the network's features, `image -> [D]`.
      attributions: signed, `[n, H, W, C]`; None for metrics that explain nothing again.
      contributions: whether the method's attributions are in score units rather than score units per input unit.
      explain_of: the method, `(fn, image, target, key) -> attribution [H, W, C]`; None for the same metrics.
    """

    images: jax.Array
    targets: jax.Array
    labels: jax.Array
    maps: jax.Array
    signed: jax.Array
    objects: jax.Array | None
    ignore: jax.Array | None
    keys: jax.Array
    explanation_keys: jax.Array
    chunk_size: int
    num_classes: int
    params: Any
    fn_of: Callable[[Any], Fn]
    features_fn: Fn
    attributions: jax.Array | None
    contributions: bool
    explain_of: Callable[[Fn, jax.Array, jax.Array, jax.Array], jax.Array] | None

    @property
    def fn(self) -> Fn:
        """The network, `image -> logits`."""
        return self.fn_of(self.params)

    @property
    def explain_one(self) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
        """The explanation as a function of the image, `(image, target, key) -> attribution`."""
        return partial(self.explain_of, self.fn)

    def explain_with(self, params: Any, image: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
        """Explain one image by the network of other parameters."""
        return self.explain_of(self.fn_of(params), image, target, key)

    def repeated(self) -> dict[str, Any]:
        """Return the keywords of metrics that explain again and compare."""
        return {"key": self.explanation_keys, "chunk_size": self.chunk_size, "attributions": self.attributions}

    def randomized(self) -> tuple[Any, ...]:
        """Return the arguments of metrics that replace parameters."""
        random_params = metrics.redraw(jax.random.key(PARAMETER_SEED), self.params)
        return self.explain_with, self.params, random_params, self.images, self.targets
