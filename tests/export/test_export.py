"""Tests of exporting: values, encodings, kinds of data, stopping and continuing, refusals, and the command line."""

import itertools
import json
import os
import re
import signal

import evaluated
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

from sdecor import evaluation, export
from sdecor.attribution import explain, reduce
from sdecor.evaluation import choose_methods
from sdecor.export import decode, encode, feed
from sdecor.export.encode import zero_point

WORDS = ("gradient", "smoothgrad:samples=2", "integrated_gradients:steps=4")
SMALL = {"device_batch": 2, "chunk_rows": 4, "progress": False}
IMAGES, LABELS, COUNT = evaluated.images(), evaluated.LABELS, evaluated.COUNT


def network(seed: int = 0):
    """Return a function of one image with its parameters in closures, one inside a compiled function."""
    params = evaluated.variables(seed)["params"]
    first = jax.jit(lambda image: jnp.tanh(image.reshape(-1) @ jnp.asarray(params["first"])))
    return lambda image: first(image) @ params["second"]


FN = network()


class Source:
    """A split of which the examples `broken` cannot be read."""

    def __init__(self, images=IMAGES, labels=LABELS, broken=(), after=None):
        self.images, self.labels, self.broken, self.after = images, labels, broken, after

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        if index in self.broken:
            raise OSError("truncated file")
        if self.after is not None:
            self.after(index)
        return {"image": self.images[index], "label": self.labels[index]}

    def name(self, index: int) -> str:
        return f"images/{index}.png"


def files(path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def stored(path, name: str) -> np.ndarray:
    import zarr

    return zarr.open_group(path, mode="r")[name][:]


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Values


@pytest.fixture(scope="module")
def explained() -> dict[str, np.ndarray]:
    """Return the attributions by `explain`, each image with its own key."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), i))(jnp.arange(COUNT))
    found = {}
    for key, (method, _) in choose_methods(WORDS).items():
        found[key] = explain(FN, IMAGES, "predicted", method=method.function, key=keys, **dict(method.options))
    return found


@pytest.mark.parametrize("how", ["abs_sum", pytest.param("sum", marks=pytest.mark.full), None])
def test_maps_are_those_of_explain(explained, tmp_path, how):
    done = export.export(FN, Source(), tmp_path / "out.zarr", methods=WORDS, reduce=how, **SMALL)
    assert done.complete and done.examples == done.finished == done.computed == COUNT
    found = export.open(tmp_path / "out.zarr")
    for key, attributions in explained.items():
        expected = attributions if how is None else reduce(attributions, how=how)
        maps = np.stack([found.attribution(key, i) for i in range(COUNT)])
        np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6, err_msg=key)
    logits = jax.jit(jax.vmap(FN))(IMAGES)
    np.testing.assert_allclose(stored(tmp_path / "out.zarr", "logits"), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(stored(tmp_path / "out.zarr", "prediction"), logits.argmax(1))
    np.testing.assert_array_equal(stored(tmp_path / "out.zarr", "label"), LABELS)
    np.testing.assert_array_equal(stored(tmp_path / "out.zarr", "example_id"), np.arange(COUNT))
    assert lines(tmp_path / "out.zarr" / "ids.jsonl")[3] == {"example_id": 3, "name": "images/3.png"}


def test_completeness_errors_are_stored_where_they_exist(tmp_path):
    words = ("integrated_gradients:steps=4", "input_x_gradient", "gradient")
    export.export(FN, Source(), tmp_path / "out.zarr", methods=words, reduce="sum", target="label", **SMALL)
    for name in ("integrated_gradients_steps_4", "input_x_gradient"):
        error = stored(tmp_path / "out.zarr", f"{name}_completeness_error")
        rise = jax.vmap(FN)(IMAGES)[np.arange(COUNT), LABELS] - FN(jnp.zeros_like(IMAGES[0]))[LABELS]
        sums = stored(tmp_path / "out.zarr", name).sum((1, 2))
        np.testing.assert_allclose(error, sums - rise, atol=1e-4)
    assert not (tmp_path / "out.zarr" / "gradient_completeness_error").exists()


def test_a_target_may_be_a_class(tmp_path):
    export.export(FN, Source(), tmp_path / "out.zarr", target=2, **SMALL)
    expected = reduce(explain(FN, IMAGES, 2))
    np.testing.assert_allclose(stored(tmp_path / "out.zarr", "gradient"), expected, rtol=1e-4, atol=1e-6)
    assert (stored(tmp_path / "out.zarr", "target") == 2).all()


def test_a_method_does_not_depend_on_those_beside_it(tmp_path):
    for name, words in (("one", WORDS[:1]), ("all", WORDS)):
        export.export(FN, Source(), tmp_path / name, methods=words, **SMALL)
    assert stored(tmp_path / "one", "gradient").tobytes() == stored(tmp_path / "all", "gradient").tobytes()


# Encoding

TINY = 1e-12 * np.random.default_rng(0).normal(size=(5, 6, 6)).astype(np.float32)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e30])
@pytest.mark.parametrize(
    ("dtype", "signed", "error"), [("float16", True, 5e-4), ("uint8", True, 4e-3), ("uint8", False, 2e-3)]
)
def test_small_and_large_values_survive(dtype, signed, error, size):
    maps = (TINY if signed else np.abs(TINY)) / 1e-12 * np.float32(size)
    codes, scale, counts = encode(jnp.asarray(maps), dtype, signed=signed)
    assert codes.dtype == dtype and scale.dtype == jnp.float32
    found = decode(codes, scale, dtype, zero_point(dtype, signed=signed))
    np.testing.assert_allclose(found / size, maps / size, atol=error * np.abs(maps / size).max())
    assert np.asarray(counts)[:, [0, 2]].sum() == 0
    one = decode(codes[2], scale[2], dtype, zero_point(dtype, signed=signed))
    np.testing.assert_array_equal(one, found[2])


def test_float16_rounds_relative_to_each_value():
    maps = np.float32([[1.0, 1e-3, 3.3e-6, 1e-9]])
    codes, scale, _ = encode(jnp.asarray(maps), "float16")
    np.testing.assert_allclose(decode(codes, scale, "float16"), maps, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_what_is_lost_is_counted(dtype):
    maps = np.zeros((4, 10), np.float32)
    maps[0] = [100, 1, 1, 1, 1, 1, 1, 1, 1, -1]  # clipped at the 90th percentile
    maps[1, :4] = 1, 1, 1e-20, -1e-20  # two are stored as 0
    maps[2, 4] = np.inf
    codes, scale, counts = encode(jnp.asarray(maps), dtype, clip_percentile=90)
    np.testing.assert_array_equal(counts, [[1, 0, 0], [0, 2, 0], [0, 0, 1], [0, 0, 0]])
    found = decode(codes, scale, dtype, zero_point(dtype, signed=True))
    np.testing.assert_allclose(found[0], [1] * 9 + [-1], rtol=1e-3)
    assert np.isnan(found[2]).all() and (found[3] == 0).all() and scale[3] == 0


def test_float32_is_stored_as_it_is():
    codes, scale, counts = encode(jnp.asarray([[1.0, np.nan], [2.0, 3.0]]), "float32")
    assert scale is None and codes.dtype == jnp.float32
    np.testing.assert_array_equal(counts, [[0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize(("dtype", "error"), [("float16", 5e-4), pytest.param("uint8", 3e-3, marks=pytest.mark.full)])
def test_scaled_maps_are_read_back(explained, tmp_path, dtype, error):
    export.export(FN, Source(), tmp_path / "out", dtype=dtype, **SMALL)
    found, expected = export.open(tmp_path / "out"), np.asarray(reduce(explained["gradient"]))
    maps = np.stack([found.attribution("gradient", i) for i in range(COUNT)])
    np.testing.assert_allclose(maps, expected, atol=error * expected.max())
    assert stored(tmp_path / "out", "gradient").dtype == dtype
    assert set(found.attributes["totals"]["counts"]["gradient"]) == {"clipped", "underflowed", "nonfinite"}


# Data


def batches(sizes, **fields):
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        yield {"image": IMAGES[rows], "label": LABELS[rows]} | {name: x[rows] for name, x in fields.items()}
        start += size


@pytest.mark.parametrize("sizes", [(1, 7, 0, 13), pytest.param((5, 5, 5, 5, 1), marks=pytest.mark.full)])
def test_batches_of_any_size_give_the_same_arrays(tmp_path, sizes):
    export.export(FN, Source(), tmp_path / "source", methods=WORDS[:2], **SMALL)
    done = export.export(FN, batches(sizes), tmp_path / "batches", methods=WORDS[:2], **SMALL)
    assert done.complete and done.examples == COUNT
    ours, theirs = files(tmp_path / "batches"), files(tmp_path / "source")
    for name in theirs:
        if "/c." in name:
            assert ours[name] == theirs[name], name
    assert lines(tmp_path / "batches" / "ids.jsonl")[20]["name"] == "20"


def test_ids_of_an_iterable_become_names(tmp_path):
    export.export(FN, batches((8, 13), id=np.arange(COUNT) + 100), tmp_path / "out", **SMALL)
    assert lines(tmp_path / "out" / "ids.jsonl")[2] == {"example_id": 2, "name": "102"}


def test_a_list_of_examples_or_of_batches_is_data_too(tmp_path):
    examples = [{"image": image} for image in IMAGES]
    for name, data in (("examples", examples), ("batches", list(batches((8, 13))))):
        assert export.export(FN, data, tmp_path / name, **SMALL).examples == COUNT
    first = stored(tmp_path / "examples", "gradient")
    np.testing.assert_array_equal(first, stored(tmp_path / "batches", "gradient"))
    assert (stored(tmp_path / "examples", "label") == -1).all()


@pytest.mark.parametrize("count", [20, 30])
def test_a_wrong_number_of_examples_is_named(tmp_path, count):
    with pytest.raises(ValueError, match=f"num_examples = {count}: data has 21 examples"):
        export.export(FN, batches((8, 13)), tmp_path / "out", num_examples=count, **SMALL)


def test_names_stay_when_the_data_move():
    def names_in(root):
        source = Source()
        source.name = lambda index: f"{root}/class{index % 2}/{index}.png"
        reader = feed.reader_of(source)
        taken = [each for batch in reader.feed(lambda start: True, 8, 1) for each in batch.by_device]
        return reader.fingerprint, [name for each in taken for name in each.names]

    assert names_in("/data/test") == names_in("gs://bucket/elsewhere")
    assert names_in("/data/test")[1][:2] == ["class0/0.png", "class1/1.png"]


def test_uint8_images_are_taken_as_they_are(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, IMAGES.shape, np.uint8)
    export.export(FN, Source(images), tmp_path / "out", **SMALL)
    logits = jax.vmap(FN)(images.astype(np.float32))
    np.testing.assert_allclose(stored(tmp_path / "out", "logits"), logits, rtol=1e-4, atol=1e-5)


# Images that cannot be read


def test_an_unreadable_image_stops_and_keeps_what_is_finished(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(
        ValueError, match=r"images/17.png \(example 17\) cannot be read: OSError: truncated file"
    ) as error:
        export.export(FN, Source(broken=(17,)), path, **SMALL | {"device_batch": 1})
    finished = int(re.search(r"(\d+) of 21 examples are finished", str(error.value))[1])
    done = export.export(FN, Source(), path, **SMALL | {"device_batch": 1})
    assert done.complete and done.computed == COUNT - finished
    export.export(FN, Source(), tmp_path / "whole", **SMALL | {"device_batch": 1})
    assert files(path) == files(tmp_path / "whole")


@pytest.mark.parametrize(
    "dtype", ["uint8", *(pytest.param(name, marks=pytest.mark.full) for name in ("float32", "float16"))]
)
def test_unreadable_images_are_skipped_on_demand(tmp_path, dtype):
    source, whole = Source(broken=(0, 5, 6, 7)), tmp_path / "whole"
    done = export.export(FN, source, tmp_path / "out", methods=WORDS[::2], dtype=dtype, on_error="skip", **SMALL)
    export.export(FN, Source(), whole, methods=WORDS[::2], dtype=dtype, **SMALL)
    assert done.complete and [line["index"] for line in lines(tmp_path / "out" / "skipped.jsonl")] == [0, 5, 6, 7]
    assert "truncated file" in lines(tmp_path / "out" / "skipped.jsonl")[0]["error"]
    there, kept = export.open(tmp_path / "out"), [i for i in range(COUNT) if i not in source.broken]
    for i in source.broken:
        assert np.isnan(there.attribution("gradient", i)).all()
    assert (stored(tmp_path / "out", "label")[list(source.broken)] == -1).all()
    for name in ("gradient", "logits", "prediction", "label", "integrated_gradients_steps_4_completeness_error"):
        np.testing.assert_array_equal(stored(tmp_path / "out", name)[kept], stored(whole, name)[kept])
    assert there.attributes["totals"]["skipped"] == 4


# Stopping and continuing


class Killed(RuntimeError):
    pass


@pytest.mark.parametrize(("unknown", "after"), [(False, 1), (True, 2)])
def test_goes_on_after_an_error_with_the_same_bytes(tmp_path, after, unknown):
    def data():
        return batches((8, 13)) if unknown else Source()

    calls = itertools.count(1)

    def die(done):
        if next(calls) == after:
            raise Killed

    options = SMALL | {"device_batch": 1, "chunk_rows": 2, "methods": WORDS[:2]}
    export.export(FN, data(), tmp_path / "whole", **options)
    with pytest.raises(Killed):
        export.export(FN, data(), tmp_path / "out", **options | {"progress": die})
    seen = []
    done = export.export(FN, data(), tmp_path / "out", **options | {"progress": seen.append})
    assert done.complete and sum(seen) == done.computed == COUNT - 8 * after
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_signal_finishes_the_batch_and_says_how_to_go_on(tmp_path):
    def stop(index):
        if index == 6:  # not one of those that are read before the export begins
            os.kill(os.getpid(), signal.SIGTERM)

    options = SMALL | {"device_batch": 1, "chunk_rows": 2}
    done = export.export(FN, Source(after=stop), tmp_path / "out", **options)
    assert not done.complete and done.finished < COUNT
    assert "Run the same command to continue" in str(done)
    rest = export.export(FN, Source(), tmp_path / "out", **options)
    assert rest.complete and rest.computed == COUNT - done.finished
    export.export(FN, Source(), tmp_path / "whole", **options)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_finished_export_is_left_alone(tmp_path):
    export.export(FN, Source(), tmp_path / "out", **SMALL)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*") if file.is_file()}
    done = export.export(FN, Source(), tmp_path / "out", **SMALL)
    assert done.complete and done.computed == 0 and "nothing to do" in str(done)
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert after == before


def test_a_damaged_range_is_computed_anew(tmp_path):
    export.export(FN, Source(), tmp_path / "out", **SMALL)
    whole = files(tmp_path / "out")
    chunk = tmp_path / "out" / "gradient" / "c.2.0.0"
    data = bytearray(chunk.read_bytes())
    data[30] ^= 1
    chunk.write_bytes(data)
    done = export.export(FN, Source(), tmp_path / "out", **SMALL)
    assert done.complete and done.computed == 4
    assert files(tmp_path / "out") == whole


def test_sizes_left_open_are_those_it_began_with(tmp_path):
    export.export(FN, Source(), tmp_path / "out", device_batch=3, chunk_size=2, chunk_rows=6, progress=False)
    assert export.export(FN, Source(), tmp_path / "out", progress=False).complete
    with pytest.raises(ValueError, match="device_batch: 3 there, 2 here"):
        export.export(FN, Source(), tmp_path / "out", device_batch=2, progress=False)


CHANGED = {
    "dtype": ({"dtype": "float16"}, "dtype"),
    "method": ({"methods": ("smoothgrad:samples=3",)}, "smoothgrad_samples_3"),
    "target": ({"target": "label"}, "target: 'predicted' there, 'label' here"),
    "reduce": ({"reduce": "sum"}, "reduction: 'abs_sum' there, 'sum' here"),
    "seed": ({"seed": 1}, "seed: 0 there, 1 here"),
    "provenance": ({"provenance": {"step": 2}}, "provenance.given.step: 1 there, 2 here"),
}


@pytest.mark.parametrize("change", CHANGED)
def test_refuses_to_go_on_with_something_else(tmp_path, change):
    options, message = CHANGED[change]
    begun = SMALL | {"provenance": {"step": 1}, "methods": ("smoothgrad:samples=2",)}
    export.export(FN, Source(), tmp_path / "out", **begun)
    before = files(tmp_path / "out")
    with pytest.raises(ValueError, match="another export") as error:
        export.export(FN, Source(), tmp_path / "out", **begun | options)
    assert message in str(error.value)
    assert files(tmp_path / "out") == before


def test_refuses_another_network_or_other_data(tmp_path):
    export.export(FN, Source(), tmp_path / "out", **SMALL)
    for fn, data, field in (
        (network(1), Source(), "provenance.parameters"),
        (FN, Source(labels=LABELS[::-1]), "data.labels"),
        (FN, Source(IMAGES[::-1]), "data.images"),
        (FN, Source(IMAGES[:9], LABELS[:9]), "num_examples"),
    ):
        with pytest.raises(ValueError, match=field):
            export.export(fn, data, tmp_path / "out", **SMALL)


WRONG = {
    "dtype": ({"dtype": "int8"}, "dtype = 'int8'"),
    "reduce": ({"reduce": "mean"}, "reduce = 'mean'"),
    "target": ({"target": "best"}, "target = 'best'"),
    "on_error": ({"on_error": "ignore"}, "on_error = 'ignore'"),
    "check": ({"check": "no"}, "check = 'no'"),
    "methods": ({"methods": ("gradiant",)}, "did you mean 'gradient'"),
    "none": ({"methods": ()}, "methods is empty"),
    "chunk_rows": ({"chunk_rows": 5}, "chunk_rows = 5 is not a multiple of device_batch = 2"),
    "shard_rows": ({"shard_rows": 6}, "shard_rows = 6 is not a multiple of chunk_rows = 4"),
    "clip": ({"clip_percentile": 0.0}, "clip_percentile = 0.0"),
    "names": ({"names": ["a"]}, "names has 1 entries: data has 21"),
    "no such class": (
        {"target": evaluated.CLASSES},
        f"target = {evaluated.CLASSES}: there are {evaluated.CLASSES} classes",
    ),
    "negative class": ({"target": -1}, "target = -1"),
    "flag": ({"target": True}, "target has dtype bool"),
    "share": ({"target": 1.5}, "target has dtype float64"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_choices_are_named_and_leave_nothing(tmp_path, wrong):
    options, message = WRONG[wrong]
    with pytest.raises(ValueError, match=re.escape(message)):
        export.export(FN, Source(), tmp_path / "out", **SMALL | options)
    assert not (tmp_path / "out").exists()


K = evaluated.CLASSES
WRONG_LABELS = {  # labels of the last example
    "large": (K, f"labels contains {K}: there are {K} classes, 0 to {K - 1}"),
    "negative": (-2, "-2: labels are integers from 0, and -1 where"),
    "beyond int32": (2**33 + 1, "8589934593: labels are integers"),
    "share": (1.7, "label of float64, "),
    "nan": (np.nan, "label of float64, "),
}


@pytest.mark.parametrize("wrong", WRONG_LABELS)
@pytest.mark.parametrize("target", ["predicted", "label"])
def test_a_label_that_is_no_class_is_an_error_before_anything_is_written(tmp_path, wrong, target):
    label, message = WRONG_LABELS[wrong]
    labels = np.array([*LABELS[:-1], label])
    rows = ((0, 8), (8, COUNT))
    for data in (
        Source(labels=labels),
        [{"image": image, "label": own} for image, own in zip(IMAGES, labels.tolist(), strict=True)],
        [{"image": IMAGES[a:b], "label": labels[a:b]} for a, b in rows],
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            export.export(FN, data, tmp_path / "out", target=target, **SMALL)
        assert not (tmp_path / "out").exists()


def test_labels_that_are_read_on_the_way_are_checked_then(tmp_path):
    labels = np.array([*LABELS[:-1], K])
    data = ({"image": IMAGES[a:b], "label": labels[a:b]} for a, b in ((0, 8), (8, COUNT)))
    with pytest.raises(ValueError, match=f"example {COUNT - 1}: labels contains {K}"):
        export.export(FN, data, tmp_path / "out", target="label", **SMALL)
    assert not export.open(tmp_path / "out").complete
    float_labels = [{"image": image, "label": label} for image, label in zip(IMAGES, LABELS * 1.0, strict=True)]
    with pytest.raises(ValueError, match="example 0 has a label of float64"):
        export.export(FN, float_labels, tmp_path / "float", **SMALL)


def test_labels_from_one_are_recognised_and_narrow_or_unknown_ones_kept(tmp_path):
    narrow = LABELS.astype(np.uint8)
    with pytest.raises(ValueError, match=f"labels contains {K}: .* did you number classes from 1"):
        export.export(FN, Source(labels=LABELS + 1), tmp_path / "out", target="label", **SMALL)
    export.export(FN, Source(labels=narrow), tmp_path / "narrow", target="label", **SMALL)
    np.testing.assert_array_equal(stored(tmp_path / "narrow", "target"), LABELS)
    unknown = np.where(np.arange(COUNT) % 2, -1, LABELS)
    export.export(FN, Source(labels=unknown), tmp_path / "unknown", **SMALL)
    np.testing.assert_array_equal(stored(tmp_path / "unknown", "label"), unknown)
    np.testing.assert_array_equal(stored(tmp_path / "unknown", "gradient").shape, (COUNT, *IMAGES.shape[1:3]))


def test_a_network_that_does_not_return_logits_is_told_what_to_return(tmp_path):
    for fn, message in (
        (lambda image: (FN(image), image), "fn returned a tuple: return its logits"),
        (lambda image: {"logits": FN(image)}, "fn returned a dict with keys 'logits'"),
    ):
        with pytest.raises(ValueError, match=message):
            export.export(fn, Source(), tmp_path / "out", **SMALL)
    with pytest.raises(ValueError, match=r"1 logit: .* \[0, z\]"):
        export.export(lambda image: FN(image)[:1], Source(), tmp_path / "out", saliency_of="probability", **SMALL)
    assert not (tmp_path / "out").exists()


def test_a_missing_label_is_named(tmp_path):
    with pytest.raises(ValueError, match="target = 'label': example 0 has no label"):
        export.export(FN, Source(labels=np.full(COUNT, -1)), tmp_path / "out", target="label", **SMALL)


def test_shards_hold_several_chunks(tmp_path):
    for name, options in (("sharded", {"shard_rows": 8}), ("plain", {})):
        export.export(FN, Source(), tmp_path / name, **SMALL | options)
    np.testing.assert_array_equal(stored(tmp_path / "sharded", "gradient"), stored(tmp_path / "plain", "gradient"))
    assert len(list((tmp_path / "sharded" / "gradient").glob("c.*"))) == 3


def test_reading_is_ahead_by_a_bounded_number_of_examples():
    seen, used = [], []

    class Counting(Source):
        def __getitem__(self, index):
            seen.append(index)
            assert index <= len(used) + 2 * 3 * feed._MOST_THREADS
            return super().__getitem__(index)

    reader = feed.reader_of(Counting(np.repeat(IMAGES, 20, 0), np.repeat(LABELS, 20)))
    seen.clear()  # some examples are read before
    for batch in reader.feed(lambda start: True, 2, 3):
        used += [name for each in batch.by_device for name in each.names]
    assert len(used) == 20 * COUNT == len(seen)


# The command line


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    import train

    root = tmp_path_factory.mktemp("export")
    images = tiny_runs.draw_images(root / "data")
    assert train.train(tiny_runs.tiny_config(images, "ce", **{"train.epochs": 2.0}), str(root / "run"))
    return root / "run"


def evaluate(*arguments, devices: int = 1):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "MPLBACKEND": "Agg"}
    env |= {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    process = tiny_runs.start([tiny_runs.sys.executable, "evaluate.py", *map(str, arguments)], env)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.mark.full
def test_the_command_line_exports_what_evaluation_explains(trained, tmp_path):
    methods = "--methods=gradient,smoothgrad:samples=2"
    flags = (f"--workdir={trained}", f"--export={tmp_path / 'out.zarr'}", methods, "--reduce=none")
    status, output = evaluate(*flags)
    assert status == 0 and "18 examples" in output, output
    status, output = evaluate(*flags, devices=3)
    assert status == 0 and "nothing to do" in output, output
    status, output = evaluate(f"--workdir={trained}", methods, "--metrics=gini", "--images=18")
    assert status == 0, output
    found = export.open(tmp_path / "out.zarr")
    with np.load(trained / "attributions.npz") as arrays:
        for method in ("gradient", "smoothgrad:samples=2"):
            maps = np.stack([found.attribution(method, i) for i in range(18)])
            np.testing.assert_allclose(maps, arrays[method], rtol=1e-4, atol=1e-6)
    with np.load(trained / "evaluation.npz") as arrays:
        np.testing.assert_array_equal(stored(tmp_path / "out.zarr", "prediction"), arrays["prediction"])
    provenance = found.attributes["provenance"]
    assert provenance["dataset"]["split"] == "test" and provenance["checkpoint"]["step"] > 0
    assert provenance["config"]["method"] == "ce" and "log" in provenance["config"]
    assert provenance["dataset"]["class_names"] == ["class0", "class1"]
    status, output = evaluate(*flags, "--target=label")
    assert status == 1 and "target: 'predicted' there, 'label' here" in output


def test_a_split_is_explained_as_in_an_evaluation(tmp_path):
    subject = evaluated.subject()
    predicted = evaluation.predict(subject)
    for word in ("gradient", "smoothgrad:samples=2"):
        _, pictures = evaluated.measured(subject, predicted, word, ("gini",), pictures=COUNT)
        methods = [method for method, _ in choose_methods([word]).values()]
        path = tmp_path / word
        export.export_split(
            subject.setup,
            methods,
            subject.variables,
            subject.source,
            path,
            reduce=None,
            options=export.Options(device_batch=3, chunk_rows=3, progress=False),
        )
        maps = np.stack([export.open(path).attribution(methods[0].key, i) for i in range(COUNT)])
        np.testing.assert_array_equal(maps, pictures.examples["attributions"])
        np.testing.assert_array_equal(stored(path, "prediction"), predicted.examples["prediction"])
