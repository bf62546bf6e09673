"""A trained run at a temperature: its logits divided by one number, given or fitted on the validation split.

The predicted classes stay the same, and so do gradients of a logit up to a factor. Probabilities change, and with them
calibration, cross-entropy, and every metric that sums probabilities, such as insertion.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from sdecor import metrics
from sdecor.evaluation import programs
from sdecor.evaluation.runs import Network, Run, setup_of, subject_of

FITTED = "fitted"


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A network with its logits divided by `variables["temperature"]`, beside the collections of the network.

    The temperature is a variable, so that runs with different ones share compiled programs.
    """

    network: Network

    def __call__(self, variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = {name: values for name, values in variables.items() if name != "temperature"}
        logits, features = self.network(own, images)
        return logits / variables["temperature"].astype(logits.dtype), features


def parse(text: str) -> float | None:
    """Return the temperature of a command line, None for "fitted".

    Raises:
      ValueError: for another word, or a number that is not positive and finite.
    """
    if text == FITTED:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise ValueError(f"--temperature={text}: give {FITTED} or a positive number")
    return value


def with_temperature(run: Run, value: float) -> Run:
    """Return a run with its logits divided by a temperature, which replaces the one that the run may have."""
    network = run.apply.network if isinstance(run.apply, Scaled) else run.apply
    return dataclasses.replace(
        run,
        apply=Scaled(network),
        variables={**run.variables, "temperature": np.float32(value)},
        settings=run.settings | {"temperature": value},
    )


def with_fitted_temperature(run: Run, advance: programs.Advance = lambda done: None) -> Run:
    """Return a run with the temperature that `metrics.fit_temperature` finds on the run's validation split.

    It is rounded to four digits, so that it is the same on other devices.

    Args:
      run: the run.
      advance: called with the number of examples predicted since the last call.
    """
    plain = with_temperature(run, 1.0)
    subject = subject_of(plain, setup_of(plain), split="val")
    found = programs.predict(subject, advance, make=programs.make_logits).examples
    return with_temperature(run, float(f"{metrics.fit_temperature(found['logits'], found['label']):.4g}"))
