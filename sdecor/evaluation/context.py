"""A batch of explained examples: the arguments of all metrics."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from sdecor import metrics

Fn = Callable[[jax.Array], jax.Array]

PARAMETER_SEED = 0  # seed of the random parameters, the same for all images


class Context(NamedTuple):
    """A batch of n examples, explained by one method.

    Attributes:
      images: preprocessed images, the network's input, `[n, H, W, C]`.
      targets: explained classes, int `[n]`.
      labels: true classes, int `[n]`.
      maps: attributions reduced over channels, `[n, H, W]`.
      signed: attributions summed over channels, `[n, H, W]`.
      objects: object masks, bool `[n, H, W]`; None if the data set has none.
      ignore: pixels that count neither as object nor as background, bool `[n, H, W]`, or None.
      keys: random keys for the metrics, `[n]`.
      explanation_keys: random keys that made the attributions, `[n]`.
      chunk_size: number of network evaluations at once.
      num_classes: number of classes K.
      params: parameters of the network.
      fn_of: the network with given parameters, `params -> (image [H, W, C] -> logits [K])`.
      features_fn: the network's features, `image -> [D]`.
      attributions: signed attributions, `[n, H, W, C]`; None for metrics that do not explain again.
      contributions: whether attributions are in score units, rather than score units per input unit.
      explain_of: the method, `(fn, image, target, key) -> attribution [H, W, C]`; None for metrics that do not explain
        again.
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
        """Return the network, `image -> logits`."""
        return self.fn_of(self.params)

    @property
    def explain_one(self) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
        """Return the method for this network, `(image, target, key) -> attribution`."""
        return partial(self.explain_of, self.fn)

    def explain_with(self, params: Any, image: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
        """Explain one image for the network with other parameters."""
        return self.explain_of(self.fn_of(params), image, target, key)

    def repeated(self) -> dict[str, Any]:
        """Return the keyword arguments of metrics that explain again and compare."""
        return {"key": self.explanation_keys, "chunk_size": self.chunk_size, "attributions": self.attributions}

    def randomized(self) -> tuple[Any, ...]:
        """Return the arguments of metrics that replace parameters."""
        random_params = metrics.redraw(jax.random.key(PARAMETER_SEED), self.params)
        return self.explain_with, self.params, random_params, self.images, self.targets
