"""Config overrides of each training method in the studies of docs/evidence.md, by its weights."""

DENSITY = {  # density of the outputs of all ReLUs of the small CNN, with positions as samples
    "decorrelation.form": "density",
    "decorrelation.layers": ("norm0", "norm1", "norm2"),
    "decorrelation.rectify": True,
    "decorrelation.spatial": "positions",
}


def ce(**also: object) -> dict:
    """Return the overrides of cross-entropy."""
    return {"method": "ce"} | also


def sgt(consistency: float, **also: object) -> dict:
    """Return the overrides of Saliency-Guided Training."""
    return {"method": "sgt", "consistency.weight": consistency} | also


def decor(weight: float, features: dict | None = None, **also: object) -> dict:
    """Return the overrides of decorrelation alone; `features` holds its form and layers, by default `DENSITY`."""
    return {"method": "decor", "decorrelation.weight": weight} | (DENSITY if features is None else features) | also


def sdecor(consistency: float, weight: float, features: dict | None = None, **also: object) -> dict:
    """Return the overrides of masked consistency and decorrelation."""
    return sgt(consistency, method="sdecor") | decor(weight, features, method="sdecor") | also


def gradpen(weight: float) -> dict:
    """Return the overrides of the penalty on the input gradient."""
    return {"method": "gradpen", "gradient_penalty.weight": weight}


def ramp(epochs: float) -> dict:
    """Return the overrides that raise the weight of consistency linearly over `epochs`."""
    return {"consistency.ramp_epochs": epochs}
