"""Tests of stored results: they are kept part by part, and only missing parts are evaluated."""

import contextlib
import io

import evaluated
import numpy as np
import pytest
from evaluated import IMAGES_OF, subject

from sdecor.evaluation import (
    Store,
    choose_methods,
    choose_metrics,
    explained,
    make_plan,
    programs,
    results,
    store as store_module,
)
from sdecor.evaluation.results import Results

SETTINGS = {"split": "test", "step": 7}


def plan_of(methods, metrics, steps=3, images=IMAGES_OF):
    example = evaluated.Source()[0]
    batch = example | {"index": np.int32(0), "weight": np.float32(1)}
    return make_plan(
        subject().setup,
        choose_methods(methods),
        choose_metrics(metrics),
        variables=evaluated.variables(),
        batch={name: np.asarray(value)[None] for name, value in batch.items()},
        images=images,
        options={"replacement": {"steps": steps}},
    )[0]


@contextlib.contextmanager
def silent(what, total):
    assert total > 0
    yield lambda count: None


@pytest.fixture
def done(monkeypatch) -> list:
    """Return a list that collects what is evaluated: "predictions", or (method, groups, number of pictures)."""
    log = []
    predict, measure = programs.predict, explained.measure

    def logged(subject, method, groups, **options):
        log.append((method.key, {each.name for each in groups}, options["pictures"]))
        return measure(subject, method, groups, **options)

    monkeypatch.setattr(programs, "predict", lambda *args: log.append("predictions") or predict(*args))
    monkeypatch.setattr(explained, "measure", logged)
    return log


def complete(folder, plan, settings=SETTINGS, **options) -> Store:
    store = Store(folder, settings, images=4, **options)
    store.complete(plan, subject(), silent)
    return store


def test_only_what_is_missing_is_evaluated(tmp_path, done):
    complete(tmp_path, plan_of(["quick"], ["gini", "insertion"]))
    assert done == ["predictions", ("random", {"replacement"}, 0), ("gradient", {"gini", "replacement"}, 4)]
    done.clear()
    first = complete(tmp_path, plan_of(["quick"], ["gini", "insertion"]))
    assert done == []
    both = plan_of(["quick", "input_x_gradient"], ["gini", "entropy", "insertion"])
    found = complete(tmp_path, both)
    names = {"gini", "entropy", "replacement"}
    assert done == [("gradient", {"entropy"}, 0), ("input_x_gradient", names, 4)]
    for name, values in first.results.examples.items():
        np.testing.assert_array_equal(found.results.examples[name], values)
    assert {"gradient/entropy", "input_x_gradient/insertion"} <= found.results.examples.keys()
    assert found.attributions.examples.keys() == {"index", "gradient", "input_x_gradient"}
    done.clear()
    complete(tmp_path, plan_of(["quick", "input_x_gradient"], ["gini", "insertion"], steps=4))
    assert done == [(key, {"replacement"}, 0) for key in ("random", "gradient", "input_x_gradient")]
    assert not list(tmp_path.glob(".*"))


def test_mosaics_leave_nothing_to_be_evaluated_again(tmp_path, done):
    plan = plan_of(["quick"], ["gini", "grid_pointing_game"])
    complete(tmp_path, plan)
    assert done == ["predictions", ("gradient", {"gini"}, 4)]
    done.clear()
    complete(tmp_path, plan)
    assert done == []


def test_other_settings_start_anew_and_more_images_are_evaluated_again(tmp_path, done):
    complete(tmp_path, plan_of(["quick"], ["gini", "insertion"]))
    done.clear()
    complete(tmp_path, plan_of(["quick"], ["gini", "insertion"], images=IMAGES_OF | {"network": 13}))
    assert done == [("random", {"replacement"}, 0), ("gradient", {"replacement"}, 0)]
    done.clear()
    complete(tmp_path, plan_of(["quick"], ["gini"]), settings=SETTINGS | {"step": 8})
    assert done == ["predictions", ("gradient", {"gini"}, 4)]


def test_fresh_evaluates_again_and_keeps_the_rest(tmp_path, done):
    complete(tmp_path, plan_of(["quick"], ["gini", "entropy"]))
    done.clear()
    complete(tmp_path, plan_of(["quick"], ["gini"]), fresh=True)
    assert done == ["predictions", ("gradient", {"gini"}, 4)]
    done.clear()
    complete(tmp_path, plan_of(["quick"], ["gini", "entropy"]))
    assert done == []


def test_an_interrupt_keeps_the_methods_that_are_done(tmp_path, done, monkeypatch):
    plan, inner = plan_of(["gradient", "input_x_gradient"], ["gini"]), explained.measure

    def stopped(subject, method, groups, **options):
        if method.key == "input_x_gradient":
            raise KeyboardInterrupt
        return inner(subject, method, groups, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(explained, "measure", stopped)
        complete(tmp_path, plan)
    done.clear()
    complete(tmp_path, plan)
    assert done == [("input_x_gradient", {"gini"}, 4)]


def test_a_process_that_does_not_write_leaves_no_file(tmp_path):
    store = complete(tmp_path, plan_of(["quick"], ["gini"]), writes=False)
    assert store.results is not None and not list(tmp_path.iterdir())


def test_evaluations_of_other_names_are_kept_apart(tmp_path, done):
    plan = plan_of(["quick"], ["gini"])
    complete(tmp_path, plan)
    complete(tmp_path, plan, settings=SETTINGS | {"split": "val"}, name="-val")
    done.clear()
    complete(tmp_path, plan)
    complete(tmp_path, plan, settings=SETTINGS | {"split": "val"}, name="-val")
    assert done == []
    expected = {f"{kind}{name}.npz" for kind in ("evaluation", "attributions") for name in ("", "-val")}
    assert {file.name for file in tmp_path.iterdir()} == expected


def test_results_of_another_schema_are_not_used(tmp_path, done, monkeypatch):
    complete(tmp_path, plan_of(["quick"], ["gini"]))
    done.clear()
    monkeypatch.setattr(store_module, "SCHEMA", -1)
    complete(tmp_path, plan_of(["quick"], ["gini"]))
    assert done == ["predictions", ("gradient", {"gini"}, 4)]


def test_what_other_versions_made_is_known(tmp_path):
    complete(tmp_path, plan_of(["quick"], ["gini"]), versions={"jax": "1", "numpy": "2"})
    plan = plan_of(["quick"], ["gini", "entropy"])
    found = complete(tmp_path, plan, versions={"jax": "1", "numpy": "3"})
    expected = {"predictions": {"numpy": "2"}, "gradient/gini": {"numpy": "2"}}
    assert found.other_versions(plan.all_parts()) == expected
    assert complete(tmp_path, plan, versions={"jax": "1", "numpy": "2"}).other_versions(["gradient/gini"]) == {}


def test_what_is_stored_with_equal_settings_is_shown_again(tmp_path):
    complete(tmp_path, plan_of(["quick", "input_x_gradient"], ["gini", "insertion", "grid_pointing_game"]))
    later = plan_of(["quick"], ["entropy"], steps=4, images=IMAGES_OF | {"mosaic": 4})
    found = complete(tmp_path, later)
    options = {"replacement": {"steps": 4}}
    everything = later.with_stored(found.parts, options)
    keys = {"gradient/gini", "gradient/entropy", "input_x_gradient/gini"}  # the others were stored with other settings
    assert {key for key in everything.select(found.results).examples if "/" in key} == keys
    assert everything.settings()["methods"].keys() == {"gradient", "input_x_gradient"}
    assert list(found.shown(everything).examples) == ["index", "gradient", "input_x_gradient"]
    same = plan_of(["quick"], ["entropy"]).with_stored(found.parts, {"replacement": {"steps": 3}})
    again = {key for key in same.select(found.results).examples if "/" in key}
    assert again - keys >= {"input_x_gradient/insertion", "gradient/deletion_curve", "random/insertion"}
    assert {"gradient/grid_pointing_game", "input_x_gradient/grid_pointing_game"} < again


def test_stored_methods_need_not_support_new_metrics(tmp_path):
    complete(tmp_path, plan_of(["expected_gradients:samples=2"], ["gini"]))
    later = plan_of(["quick"], ["completeness"])  # this metric refuses expected gradients
    everything = later.with_stored(complete(tmp_path, later).parts, {})
    assert {*everything.all_parts()} == {"expected_gradients:samples=2/gini", "gradient/completeness"}


def test_stored_parts_that_this_version_does_not_know_are_left_alone(tmp_path):
    plan = plan_of(["quick"], ["gini"])
    store = complete(tmp_path, plan)
    unknown = {"magic/gini": store.parts["gradient/gini"], "gradient/magic": store.parts["gradient/gini"]}
    assert plan.with_stored(store.parts | unknown, {}).all_parts() == plan.all_parts()


def archive(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


DAMAGED = {
    "empty": lambda whole: b"",
    "cut at the start": lambda whole: whole[:10],
    "cut in the middle": lambda whole: whole[: len(whole) // 2],
    "cut at the end": lambda whole: whole[:-1],
    "overwritten": lambda whole: b"{}" * 100,
    "a single array": lambda whole: whole[whole.index(b"\x93NUMPY") :],
    "flipped": lambda whole: whole[:300] + bytes([whole[300] ^ 1]) + whole[301:],
    "no index": lambda whole: archive(settings="{}"),
    "settings of another type": lambda whole: archive(settings="[1]", index=np.arange(3)),
    "parts of another type": lambda whole: archive(settings='{"run": 1, "parts": []}', index=np.arange(3)),
    "settings are no JSON": lambda whole: archive(settings='{"run', index=np.arange(3)),
    "objects": lambda whole: archive(settings="{}", index=np.array([{}])),
    "texts": lambda whole: archive(settings="{}", index=np.arange(3), gini=np.array(["=1", "b", "c"])),
    "other lengths": lambda whole: archive(settings="{}", index=np.arange(3), gini=np.zeros(2)),
    "a scalar": lambda whole: archive(settings="{}", index=np.arange(3), gini=np.zeros(())),
    "indices twice": lambda whole: archive(settings="{}", index=np.array([0, 0, 1])),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_and_counts_as_missing(tmp_path, caplog, damage):
    path, whole = tmp_path / "evaluation.npz", Results({"index": np.arange(9), "gini": np.linspace(0, 1, 9)}, {})
    results.save(path, whole, SETTINGS, {"gradient/gini": {}})
    assert results.load(path, SETTINGS)[1] == {"gradient/gini": {}} and not caplog.messages
    path.write_bytes(damage(path.read_bytes()))
    assert results.load_with_versions(path, SETTINGS) == (None, {}, {})
    (message,) = caplog.messages
    assert f"{path} is damaged (" in message and "evaluated again" in message


def test_no_flipped_or_missing_byte_changes_a_number(tmp_path):
    path, values = tmp_path / "evaluation.npz", np.linspace(0, 1, 5)
    results.save(path, Results({"index": np.arange(5), "gini": values}, {"count": np.ones(1)}), SETTINGS, {"a": 1})
    whole = path.read_bytes()
    seen = 0
    for place in range(0, len(whole), 3):
        for content in (whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :], whole[:place]):
            path.write_bytes(content)
            found, parts = results.load(path, SETTINGS)
            seen += found is None
            assert found is None or (parts == {"a": 1} and (found.examples["gini"] == values).all())
    assert seen > len(whole) // 3  # every cut, and most flips


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["evaluation.npz", "attributions.npz"])
def test_what_a_damaged_file_held_is_evaluated_again(tmp_path, done, name, fresh):
    plan = plan_of(["quick"], ["gini"])
    first = complete(tmp_path, plan)
    done.clear()
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    again = complete(tmp_path, plan, fresh=fresh)
    of_results = name == "evaluation.npz" or fresh
    pictures = 4 if name == "attributions.npz" or fresh else 0
    assert done == (["predictions"] if of_results else []) + [("gradient", {"gini"} if of_results else set(), pictures)]
    np.testing.assert_array_equal(again.results.examples["gradient/gini"], first.results.examples["gradient/gini"])
    maps = (store.attributions.examples["gradient"] for store in (again, first))
    np.testing.assert_allclose(*maps, rtol=1e-4, atol=1e-6)  # the batches have other sizes
    done.clear()
    complete(tmp_path, plan)
    assert done == []
