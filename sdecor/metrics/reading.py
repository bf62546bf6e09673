"""How metrics are read in a table: all names with their order and words, those relative to random among them."""

from sdecor.metrics.registry import DATASET_METRICS, METRICS, Metric

RELATIVE = "_vs_random"  # ends the name of a metric less its value for a random order of pixels on the same network
# A single image can decide their mean: a quotient whose denominator may be nearly 0. They are read as a median.
MEDIANS = (
    "completeness",
    "relative_input_stability",
    "relative_output_stability",
    "relative_representation_stability",
)


def _with_relative() -> dict[str, Metric]:
    known = {}
    for name, metric in METRICS.items():
        known[name] = metric
        relative = name + RELATIVE
        if metric.needs == "network" and not name.endswith(RELATIVE) and relative not in METRICS:
            words = "Less its value for a random order of pixels. 0 is what a random order scores on the same network."
            known[relative] = metric._replace(title=f"{metric.title}, relative to random", description=words)
    return known | DATASET_METRICS


KNOWN: dict[str, Metric] = _with_relative()
