"""Tests of the order of examples, the two training loaders and evaluation batches."""

import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest

from sdecor.data import loader as loader_module
from sdecor.data.batches import (
    batch_indices,
    epoch_order,
    evaluation_batches,
    evaluation_indices,
    rasterise_box,
    steps_per_epoch,
)
from sdecor.data.loader import create_loader
from sdecor.data.memory import MemorySource, load_in_memory


@dataclasses.dataclass
class FakeSource:
    """A split of distinct images; some may be broken or of another shape, and have masks (`object`) or boxes."""

    n: int = 23
    broken: tuple[int, ...] = ()
    odd: tuple[int, ...] = ()
    fields: tuple[str, ...] = ()

    def __post_init__(self):
        self.labels = (np.arange(self.n) % 5).astype(np.int32)
        self.reads = []

    def __len__(self):
        return self.n

    def name(self, index):
        return f"class/{index}.png"

    def __getitem__(self, index):
        self.reads.append(index)
        if index in self.broken:
            raise OSError("image file is truncated")
        rng = np.random.default_rng(index)
        shape = (4, 6, 1) if index in self.odd else (4, 6, 3)
        example = {"image": rng.integers(0, 256, shape, np.uint8), "label": self.labels[index]}
        if "object" in self.fields:
            example["object"] = rng.integers(0, 3, (4, 6), np.uint8)
        if "box" in self.fields:
            example["box"] = np.array([1, index % 3, 3, 5], np.int32)
        return example


def take(loader, start, count):
    batches = loader.iterate(start)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def assert_equal(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for field in left:
            assert left[field].dtype == right[field].dtype
            np.testing.assert_array_equal(left[field], right[field])


# --- order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 23, 1000])
def test_an_epoch_is_a_permutation(n):
    np.testing.assert_array_equal(np.sort(epoch_order(3, 7, n)), np.arange(n))


def test_orders_differ_by_epoch_and_seed_and_are_reproducible():
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16
    assert tuple(epoch_order(2, 3, 50)) == orders[2 * 4 + 3]


def test_the_order_is_the_one_that_earlier_runs_had():
    """A changed order breaks resumed runs: announce it in the release notes."""
    np.testing.assert_array_equal(epoch_order(0, 0, 12), [0, 2, 11, 9, 1, 8, 5, 4, 3, 10, 6, 7])


def test_examples_land_everywhere_in_the_order():
    first = np.bincount([epoch_order(0, epoch, 8)[0] for epoch in range(4000)], minlength=8)
    np.testing.assert_allclose(first, 500, atol=5 * 500**0.5)


def test_a_cached_order_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 10)[0] = 1


@pytest.mark.parametrize("process_count", [1, 2, 3, 6])
def test_the_global_batch_does_not_depend_on_the_processes(process_count):
    for step in range(9):
        whole, positions = batch_indices(5, step, n=23, batch_size=6)
        np.testing.assert_array_equal(positions, np.arange(6))
        parts = [
            batch_indices(5, step, n=23, batch_size=6, process_index=p, process_count=process_count)
            for p in range(process_count)
        ]
        assert all(len(indices) == 6 // process_count for indices, _ in parts)
        np.testing.assert_array_equal(np.concatenate([indices for indices, _ in parts]), whole)
        np.testing.assert_array_equal(np.concatenate([positions for _, positions in parts]), positions)


def test_epochs_stay_whole_and_leave_out_others_each_time():
    left_out = []
    for epoch in range(40):
        steps = [batch_indices(1, epoch * 3 + step, n=23, batch_size=6)[0] for step in range(3)]
        seen = np.concatenate(steps)
        assert len(set(seen)) == 18
        left_out.append(frozenset(range(23)) - set(seen))
    assert set().union(*left_out) == set(range(23))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 24}, "batch_size = 24 is larger than the training split, which has 23 examples"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"process_count": 4}, "batch_size = 6 cannot be split over 4 processes: choose a multiple of 4"),
        ({"process_count": 2, "process_index": 2}, "process_index = 2"),
        ({"seed": -1}, "seed = -1"),
        ({"kind": "memroy"}, "did you mean 'memory'"),
        ({"kind": "grain", "prefetch": 0}, "prefetch = 0"),
        ({"kind": "grain", "num_workers": -1}, "num_workers = -1"),
    ],
)
def test_impossible_fields_say_what_is_right(options, message):
    with pytest.raises(ValueError, match=message):
        create_loader(FakeSource(), **({"batch_size": 6, "seed": 0} | options))


# --- loaders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [(0, 1), (0, 2), (1, 2)])
def test_memory_and_grain_serve_the_same_batches(process):
    fields = {"batch_size": 6, "seed": 4, "process_index": process[0], "process_count": process[1]}
    memory = create_loader(FakeSource(), kind="memory", **fields)
    grain = create_loader(FakeSource(), kind="grain", threads=3, prefetch=3, **fields)
    batches = take(memory, 0, 10)
    assert_equal(take(grain, 0, 10), batches)
    assert_equal([grain.batch(step) for step in range(10)], batches)
    assert memory.steps_per_epoch == grain.steps_per_epoch == steps_per_epoch(23, 6) == 3
    for step, batch in enumerate(batches):
        indices, positions = batch_indices(
            4, step, n=23, batch_size=6, process_index=process[0], process_count=process[1]
        )
        np.testing.assert_array_equal(batch["image"], np.stack([FakeSource()[i]["image"] for i in indices]))
        np.testing.assert_array_equal(batch["label"], indices % 5)
        np.testing.assert_array_equal(batch["position"], positions)
        assert (batch["label"].dtype, batch["position"].dtype) == (np.int32, np.int32)


@pytest.mark.parametrize("kind", ["memory", "grain"])
@pytest.mark.parametrize("start", [1, 3, 8])
def test_resuming_at_a_step_is_exact(kind, start):
    uninterrupted = take(create_loader(FakeSource(), batch_size=5, seed=0, kind=kind), 0, 12)
    resumed = take(create_loader(FakeSource(), batch_size=5, seed=0, kind=kind), start, 12 - start)
    assert_equal(resumed, uninterrupted[start:])


def test_resuming_decodes_nothing_of_earlier_steps():
    source = FakeSource(n=1000)
    loader = create_loader(source, batch_size=5, seed=0, kind="grain", threads=1, prefetch=1)
    source.reads.clear()
    take(loader, 50, 1)
    allowed = np.concatenate([batch_indices(0, step, n=1000, batch_size=5)[0] for step in range(50, 53)])
    assert 5 <= len(source.reads) <= 15 and set(source.reads) <= set(allowed)


def test_auto_takes_memory_as_long_as_it_fits():
    size = 23 * 4 * 6 * 3 / 2**20
    assert create_loader(FakeSource(), batch_size=6, seed=0, memory_limit_mb=size).kind == "memory"
    assert create_loader(FakeSource(), batch_size=6, seed=0, memory_limit_mb=size * 0.99).kind == "grain"
    assert create_loader(load_in_memory(FakeSource()), batch_size=6, seed=0, memory_limit_mb=0).kind == "memory"


def test_describe_names_kind_and_size():
    memory = create_loader(FakeSource(), batch_size=6, seed=0, kind="memory").describe()
    grain = create_loader(FakeSource(), batch_size=6, seed=0, kind="grain", num_workers=2).describe()
    assert memory == "memory: 23 images of 4×6×3, 0.0 MiB, 3 steps per epoch"
    assert grain == "grain: 23 images of 4×6×3, 2 worker processes, 4 threads, 3 steps per epoch"


def test_memory_decodes_each_example_once():
    source = FakeSource(n=600, fields=("object", "box"))
    loaded = load_in_memory(source, threads=2)
    assert sorted(source.reads) == [0, *range(600)]  # the first is read once more for the shapes
    assert len(loaded) == 600 and loaded.name(7) == "class/7.png"
    for index in (0, 255, 256, 599):
        assert_equal([loaded[index]], [source[index]])
    assert load_in_memory(loaded) is loaded
    assert "object" not in load_in_memory(source, objects=False)[0]


@pytest.mark.parametrize("kind", ["memory", "grain"])
def test_a_broken_example_is_named(kind):
    with pytest.raises(ValueError, match=r"class/11\.png .*OSError: image file is truncated"):
        take(create_loader(FakeSource(broken=(11,)), batch_size=6, seed=0, kind=kind), 0, 8)


@pytest.mark.parametrize("kind", ["memory", "grain"])
def test_an_image_of_another_shape_is_named(kind):
    with pytest.raises(ValueError, match=r"class/9\.png .*\(4, 6, 1\).*should be uint8 \(4, 6, 3\)"):
        take(create_loader(FakeSource(odd=(9,)), batch_size=6, seed=0, kind=kind), 0, 8)


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, 0, 4), (12, 0, 12), (64, 0, 16), (64, 2, 4)])
def test_threads_follow_the_cores(monkeypatch, cores, workers, threads):
    monkeypatch.setattr(loader_module, "usable_cores", lambda: cores)
    loader = create_loader(FakeSource(), kind="grain", batch_size=5, seed=0, num_workers=workers)
    assert f"{threads} threads" in loader.describe()
    one = create_loader(FakeSource(), kind="grain", batch_size=5, seed=0, threads=1)
    assert_equal([loader.batch(3)], [one.batch(3)])


def test_leaving_the_iterator_ends_its_threads():
    loader = create_loader(FakeSource(), batch_size=6, seed=0, kind="grain")
    batches = loader.iterate()
    next(batches)
    assert any("grain" in thread.name for thread in threading.enumerate())
    batches.close()
    deadline = time.monotonic() + 10
    while any("grain" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.full
def test_worker_processes_serve_the_same_batches_and_name_broken_examples():
    fields = {"batch_size": 6, "seed": 4, "kind": "grain"}
    expected = take(create_loader(FakeSource(), **fields), 2, 6)
    assert_equal(take(create_loader(FakeSource(), num_workers=2, **fields), 2, 6), expected)
    with pytest.raises(ValueError, match=r"class/11\.png .*OSError: image file is truncated"):
        take(create_loader(FakeSource(broken=(11,)), num_workers=1, **fields), 0, 8)


# --- evaluation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process_count", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 3, 11, 12, 13])
def test_evaluation_covers_each_example_once(n, process_count):
    source = FakeSource(n=n)
    shards = [
        list(evaluation_batches(source, batch_size=12, process_index=p, process_count=process_count))
        for p in range(process_count)
    ]
    assert {len(shard) for shard in shards} == {-(-n // 12)}
    batches = [batch for shard in shards for batch in shard]
    assert {batch["image"].shape for batch in batches} == {(12 // process_count, 4, 6, 3)}
    index, weight, label = (np.concatenate([b[field] for b in batches]) for field in ("index", "weight", "label"))
    images = np.concatenate([batch["image"] for batch in batches])
    assert (index.dtype, weight.dtype, label.dtype) == (np.int32, np.float32, np.int32)
    assert set(weight) <= {0.0, 1.0} and weight.sum() == n
    np.testing.assert_array_equal(np.sort(index[weight == 1]), np.arange(n))
    assert (index[weight == 0] == -1).all()
    for i, image, shown in zip(index, images, label, strict=True):
        np.testing.assert_array_equal(image, source[max(i, 0)]["image"])
        assert shown == source.labels[max(i, 0)]


def test_evaluation_is_in_order():
    batches = list(evaluation_batches(FakeSource(), batch_size=4, threads=3, prefetch=3))
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in batches])[:23], np.arange(23))
    assert "object" not in batches[0]


@pytest.mark.parametrize("limit", [1, 3, 23, 99])
def test_a_limit_chooses_some_of_the_split_for_good(limit):
    chosen = evaluation_indices(23, limit)
    assert len(set(chosen)) == min(limit, 23) and list(chosen) == sorted(chosen)
    assert set(chosen) <= set(evaluation_indices(23, limit + 5))
    seen = np.concatenate([b["index"] for b in evaluation_batches(FakeSource(), batch_size=4, limit=limit)])
    np.testing.assert_array_equal(seen[seen >= 0], evaluation_indices(len(FakeSource()), limit))


def test_a_limit_sees_all_classes_of_a_cycle():
    """Labels repeat 0 … 9: a stride of 20 would see one class only."""
    counts = np.bincount(evaluation_indices(10_000, 500) % 10, minlength=10)
    assert counts.min() > 25 and counts.max() < 80


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("fields", [("object",), ("box",), ("object", "box")])
def test_object_codes_come_from_the_mask_before_the_box(fields, in_memory):
    source = FakeSource(fields=fields)
    batches = evaluation_batches(load_in_memory(source) if in_memory else source, batch_size=8)
    for batch in batches:
        assert batch["object"].dtype == np.uint8
        for index, mask in zip(batch["index"], batch["object"], strict=True):
            example = source[max(index, 0)]
            expected = example["object"] if "object" in fields else rasterise_box(example["box"], 4, 6)
            np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((1, 2, 3, 5), (1, 3), (2, 5)),
        ((0, 0, 4, 6), (0, 4), (0, 6)),
        ((-2, -1, 2, 99), (0, 2), (0, 6)),
        ((2, 2, 2, 5), (0, 0), (0, 0)),
        ((-3, -3, -1, -1), (0, 0), (0, 0)),
    ],
    ids=["inside", "whole", "cut", "empty", "outside"],
)
def test_a_box_is_half_open_and_cut_at_the_border(box, rows, columns):
    expected = np.zeros((4, 6), np.uint8)
    expected[slice(*rows), slice(*columns)] = 1
    np.testing.assert_array_equal(rasterise_box(box, 4, 6), expected)


def test_a_missing_mask_is_named():
    source = load_in_memory(FakeSource(fields=("object",)))

    class Patchy(MemorySource):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return example if index != 5 else {k: v for k, v in example.items() if k != "object"}

    patchy = Patchy(source.images, source.labels, objects=source.objects)
    with pytest.raises(ValueError, match="example 5 .*no object mask or box"):
        list(evaluation_batches(patchy, batch_size=8))


def test_evaluation_names_a_broken_example_and_ends_its_threads():
    with pytest.raises(ValueError, match=r"class/11\.png"):
        list(evaluation_batches(FakeSource(broken=(11,)), batch_size=4))
    batches = evaluation_batches(FakeSource(), batch_size=4)
    next(batches)
    batches.close()
    deadline = time.monotonic() + 10
    while any("evaluation-batches" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch_size = 6 cannot be split over 4 processes"),
        ({"batch_size": 4, "limit": 0}, "limit = 0"),
        ({"batch_size": 4, "threads": 0}, "threads = 0"),
    ],
)
def test_impossible_evaluation_fields_fail_at_the_call(options, message):
    with pytest.raises(ValueError, match=message):
        evaluation_batches(FakeSource(), **options)
    with pytest.raises(ValueError, match="split is empty"):
        evaluation_batches(FakeSource(n=0), batch_size=4)
