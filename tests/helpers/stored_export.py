"""Small exports of drawn maps, written through the store, for tests of readers."""

import jax.numpy as jnp
import numpy as np

from sdecor.core.files import plain_settings
from sdecor.evaluation import choose_methods
from sdecor.export.encode import encode, zero_point
from sdecor.export.layout import ArraySpec, Layout
from sdecor.export.store import Store

N, H, W, CLASSES, RANGE = 11, 6, 7, 4, 4
METHODS = {"gradient": "gradient", "integrated_gradients:steps=4": "integrated_gradients_steps_4"}


def draw(channels: int | None = None, *, signed: bool = True, n: int = N, side: tuple[int, int] = (H, W)) -> dict:
    """Return float32 maps by method, with very different scales; one map is zeros."""
    rng = np.random.default_rng(1)
    shape = (n, *side) if channels is None else (n, *side, channels)
    drawn = {method: rng.normal(size=shape).astype(np.float32) for method in METHODS}
    for maps in drawn.values():
        maps *= np.float32(10.0) ** rng.integers(-9, 3, n).reshape(-1, *[1] * (maps.ndim - 1))
        maps[2] = 0
        maps[...] = maps if signed else np.abs(maps)
    return drawn


def settings_of(method: str) -> dict:
    """Return all options of a method, as an export stores them."""
    ((found, _),) = choose_methods([method]).values()
    return plain_settings(found.settings("logit"))


def write(
    path,
    maps: dict[str, np.ndarray],
    *,
    dtype: str = "float32",
    reduction: str | None = "sum",
    skipped: tuple[int, ...] = (),
    ranges: tuple[int, ...] | None = None,
    settings: dict[str, dict] | None = None,
    **attributes,
) -> dict[str, np.ndarray]:
    """Write an export of `maps`; with `ranges`, only these, and the export is unfinished.

    Returns:
      The arrays beside the maps: `label`, `prediction`, `target`, `logits`.
    """
    first = next(iter(maps.values()))
    n, tail, signed = len(first), first.shape[1:], reduction is None or not reduction.startswith("abs")
    rng = np.random.default_rng(2)
    columns = {name: rng.integers(0, CLASSES, n).astype(np.int32) for name in ("label", "prediction", "target")}
    columns["logits"] = rng.normal(size=(n, CLASSES)).astype(np.float32)
    given = {name: attributes.pop(name) for name in list(columns) if name in attributes}
    columns |= given
    specs = [ArraySpec("example_id", dtype="int64", fill=-1), ArraySpec("logits", (CLASSES,), dims=("class",))]
    specs += [ArraySpec(name, dtype="int32", fill=-1) for name in ("label", "prediction", "target")]
    rows = {"example_id": np.arange(n), **columns}
    for method, values in maps.items():
        name, zero = METHODS[method], zero_point(dtype, signed=signed)
        stored, scale, _ = encode(jnp.asarray(values), dtype, signed=signed)
        encoding = {"dtype": dtype, "scale": None if scale is None else f"{name}_scale", "zero_point": zero}
        chosen = {**settings_of(method), **(settings or {}).get(method, {})}
        about = {"method": method, "settings": chosen, "reduction": reduction, "encoding": encoding}
        about["completeness_error"] = f"{name}_completeness_error" if method != "gradient" else None
        dims = ("y", "x", "channel")[: len(tail)]
        specs.append(ArraySpec(name, tail, dtype, dims, zero if dtype == "uint8" else None, about))
        rows[name] = np.asarray(stored)
        extra = {f"{name}_scale": scale} if scale is not None else {}
        extra |= {f"{name}_completeness_error": np.arange(n, dtype=np.float32)} if method != "gradient" else {}
        specs += [ArraySpec(each) for each in extra]
        rows |= {each: np.asarray(values) for each, values in extra.items()}
    about = {"reduction": reduction, "dtype": dtype, "target": "predicted", "saliency_of": "logit"}
    about |= {"image_shape": [*tail[:2], 3], "num_classes": CLASSES, "methods": {m: METHODS[m] for m in maps}}
    layout = Layout(tuple(specs), RANGE // 2, RANGE, {**about, **attributes})
    for spec in specs:
        rows[spec.name] = rows[spec.name].copy()
        for place in skipped:
            if spec.name != "example_id":
                rows[spec.name][place] = spec.fill if spec.fill is not None else np.nan
    with Store(path, layout, num_examples=n) as store:
        for start in range(0, n, RANGE):
            if ranges is not None and start // RANGE not in ranges:
                continue
            stop = min(start + RANGE, n)
            errors = [{"index": i, "name": f"image {i}", "error": "cut off"} for i in skipped if start <= i < stop]
            counts = {METHODS[method]: {"clipped": 3, "underflowed": 0, "nonfinite": 0} for method in maps}
            record = {"names": [f"image {i}" for i in range(start, stop)], "skipped": errors, "counts": counts}
            store.write(start, stop, {name: values[start:stop] for name, values in rows.items()}, record).result()
        if ranges is None:
            store.wait_and_finish(n)
    return columns
