"""Tests of a step that is compiled before it runs: collectives, memory, estimates, the largest batch, the cache."""

import importlib.util
import json
import types
from typing import NamedTuple
from unittest import mock

import command_lines
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

from configs import default
from sdecor.core import parallel
from sdecor.training import build, compiled, members, preview
from sdecor.training.checkpoint import Checkpoints
from sdecor.training.compiled import OutOfMemory
from sdecor.training.run import build_run, compile_step

PLAIN = """
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, f32[] %y)
}

ENTRY %main (p: f32[64]) -> f32[8] {
  %p = f32[64]{0:T(128)} parameter(0)
  %moments = f32[2,64]{1,0:T(2,128)S(1)} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %all-reduce.7 = (f32[3,4]{1,0:T(8,128)}, bf16[10]{0:T(256)(128)(2,1)S(1)}, /*index=2*/pred[]) all-reduce(%a, %b, %c)
  %get-tuple-element.3 = f32[3,4]{1,0} get-tuple-element(%all-reduce.7), index=0, metadata={op_name="all-reduce(x"}
  %reduce-scatter.1 = f32[8]{0} reduce-scatter(%p), dimensions={0}, to_apply=%add
  %gathered = f32[512]{0} all-gather(%p), dimensions={0}
  ROOT %permuted = s4[9]{0} collective-permute(%small), source_target_pairs={{0,1},{1,0}}
}
"""
ASYNCHRONOUS = """
ENTRY %main {
  %p = f32[64]{0} parameter(0)
  %q = bf16[32]{0} parameter(1)
  %all-reduce-start = (f32[64]{0}, bf16[32]{0}) all-reduce-start(%p, %q), to_apply=%add
  %all-reduce-done = (f32[64]{0}, bf16[32]{0}) all-reduce-done(%all-reduce-start)
  %all-gather-start = (f32[64]{0}, f32[512]{0}) all-gather-start(%p), dimensions={0}
  %all-gather-done = f32[512]{0} all-gather-done(%all-gather-start)
  %reduce-scatter-start = ((f32[64]{0}), f32[8]{0}, u32[]{:S(2)}) reduce-scatter-start(%p), dimensions={0}
  %reduce-scatter-done = f32[8]{0} reduce-scatter-done(%reduce-scatter-start)
  %permute-start = (f32[64]{0}, f32[64]{0}, u32[], u32[]) collective-permute-start(%p)
  ROOT %permute-done = f32[64]{0} collective-permute-done(%permute-start)
}
"""
# One all-gather that starts in a fusion, goes on in another beside other work, and ends in a third; and a second one.
SPREAD = """
%fused_computation.1 (p.1: f32[64]) -> (f32[64], f32[512], u32[]) {
  %p.1 = f32[64]{0:T(128)S(1)} parameter(0)
  %all-gather.5 = f32[512]{0:T(128)} all-gather(%p.1), channel_id=1, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.7 = (f32[64]{0}, f32[512]{0}, u32[]{:S(2)}) custom-call(%all-gather.5), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (p.2: f32[64], p.3: f32[512]) -> f32[512] {
  %p.2 = f32[64]{0:T(128)S(1)} parameter(0)
  %all-gather.7 = f32[512]{0:T(128)} all-gather(%p.2), channel_id=1, dimensions={0}, frontend_attributes={chain_id="0"}
}

%fused_computation.3 (p.4: f32[64], p.5: f32[512]) -> f32[512] {
  %p.4 = f32[64]{0:T(128)S(1)} parameter(0)
  %all-gather.9 = f32[512]{0:T(128)} all-gather(%p.4), channel_id=1, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.8 = f32[512]{0:T(128)} custom-call(%all-gather.9), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: f32[64]) -> f32[512] {
  %p = f32[64]{0} parameter(0)
  ROOT %all-gather.1 = f32[512]{0} all-gather(%p), channel_id=1, dimensions={0}, frontend_attributes={chain_id="1"}
}
"""  # noqa: E501


def test_collectives_are_counted_with_their_bytes():
    assert compiled.count_collectives(PLAIN) == {
        "all-gather": {"count": 1, "bytes": 4 * 512},
        "all-reduce": {"count": 2, "bytes": 4 * 128 + 4 * 12 + 2 * 10 + 1},
        "collective-permute": {"count": 1, "bytes": 5},
        "reduce-scatter": {"count": 1, "bytes": 4 * 64},
    }


def test_a_collective_of_two_instructions_counts_once():
    assert compiled.count_collectives(ASYNCHRONOUS) == {
        "all-gather": {"count": 1, "bytes": 4 * 512},
        "all-reduce": {"count": 1, "bytes": 4 * 64 + 2 * 32},
        "collective-permute": {"count": 1, "bytes": 4 * 64},
        "reduce-scatter": {"count": 1, "bytes": 4 * 64},
    }


def test_a_collective_that_is_spread_over_fusions_counts_once():
    assert compiled.count_collectives(SPREAD) == {"all-gather": {"count": 2, "bytes": 2 * 4 * 512}}


def test_collectives_of_a_real_program():
    def step(state, batch, hyper, key):
        everyone = jax.lax.all_gather(batch, parallel.AXIS, tiled=True)
        return state + jax.lax.psum(batch.sum(0), parallel.AXIS) * everyone[0], {}

    batch = jax.ShapeDtypeStruct((8, 2, 5), jnp.float32)
    state, number = jax.ShapeDtypeStruct((5,), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    program = parallel.lower_step(parallel.pmap_step(step), state, batch, number, number).compile()
    found = compiled.count_collectives(program.as_text())
    assert found == {"all-gather": {"count": 1, "bytes": 4 * 16 * 5}, "all-reduce": {"count": 1, "bytes": 4 * 5}}
    memory = compiled.measure_memory(program)
    assert memory["arguments"] >= 4 * (2 * 5 + 5) and memory["peak"] >= memory["arguments"] + memory["temporaries"]


CHIP = compiled.Chip("c", 1000.0, 100.0, 10.0)


@pytest.mark.parametrize(
    ("own", "chip", "seconds", "origin"),
    [
        (3.0, CHIP, 3.0, "the compiler's estimate"),
        (-88.0, CHIP, 2.0, "not credible"),
        (0.5, CHIP, 2.0, "not credible"),
        (1e6, CHIP, 2.0, "not credible"),
        (None, CHIP, 2.0, "no estimate"),
        (3.0, None, 3.0, "the compiler's estimate"),
        (-3.0, None, None, "unknown"),
    ],
)
def test_an_estimate_that_is_not_credible_gives_way_to_the_roofline(own, chip, seconds, origin):
    found = compiled.estimate_time({"flops": 100.0, "bytes": 20.0, "seconds": own}, chip)
    assert found.seconds == seconds and origin in found.origin


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (23.5G) "
            "exceeds available HBM (15.75G).",
            OutOfMemory(23.5 * 2**30, 15.75 * 2**30),
        ),
        ("Ran out of memory in memory space hbm. Used 512.5M of 256K hbm.", OutOfMemory(512.5 * 2**20, 256 * 2**10)),
        ("RESOURCE_EXHAUSTED: out of memory", OutOfMemory(None, None)),
        ("INTERNAL: something else", None),
    ],
)
def test_what_the_compiler_says_about_memory_is_read(text, expected):
    assert compiled.parse_refusal(ValueError(text)) == expected


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    ("slope", "too_large", "expected"), [(10, 160, 96), (10, 104, 96), (100, 4000, 8), (1000, 160, 0), (10, 99, 96)]
)
def test_the_largest_batch_is_found_by_few_compilations(told, slope, too_large, expected):
    """Memory is 20 and `slope` an image, of 1000; a compiler may not tell the memory of a batch that does not fit."""
    tried = []

    def memory_of(batch):
        tried.append(batch)
        needed = 20 + slope * batch
        return needed <= 1000, needed if told or needed <= 1000 else None

    options = {"limit": 1000, "unit": 8, "needed": 20 + slope * too_large if told else None}
    found, exact = compiled.largest_batch(memory_of, too_large=too_large, tries=20, **options)
    assert found == expected and exact and len(set(tried)) == len(tried)
    assert all(batch % 8 == 0 and batch < too_large for batch in tried)
    assert not told or len(tried) <= 3


def test_a_search_that_ends_early_says_so():
    found = compiled.largest_batch(lambda batch: (batch <= 100, None), too_large=8192, needed=None, limit=None, unit=1)
    assert found == (0, False)
    found = compiled.largest_batch(lambda batch: (True, None), too_large=1024, needed=None, limit=None, unit=1)
    assert found == (960, False)


def test_memory_that_is_not_linear_hides_no_batch_that_fits():
    """Padding takes memory near the limit: the line through the known sizes leads to batches that do not fit."""
    found = compiled.largest_batch(
        lambda batch: (batch <= 600, 1001 if batch > 600 else batch), too_large=4000, needed=4000, limit=1000, unit=1
    )
    assert found == (499, False)


@pytest.mark.parametrize(("exact", "text"), [(True, "not even one image"), (False, "nor do the smaller ones tried")])
def test_a_search_that_finds_nothing_says_how_far_it_went(exact, text):
    found = {"largest_batch": {"batch_size": 0, "exact": exact}, "fits": False}
    assert text in compiled._remarks(compiled.Plan("ce", jax.devices(), 512, 1, 1), {"ce": found})[0]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_runs.draw_images(tmp_path_factory.mktemp("images") / "data")


def test_a_run_compiles_its_step_once_ahead_and_after_a_restart(images, tmp_path, capsys):
    config, folder = tiny_runs.tiny_config(images), str(tmp_path / "run")
    built = []
    listen = lambda event, seconds, **_: built.append(event) if "backend_compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)

    def start():
        run, state = build_run(config, folder)
        with Checkpoints(folder) as checkpoints:
            state, _ = members.restore(run.members, [checkpoints], state, None)
        compile_step(run, state)
        batches = run.batches(int(state.step), 0)
        batch = next(batches)
        before = len(built)
        state, terms = run.train_step(state, batch)
        jax.block_until_ready(terms)
        batches.close()
        assert len(built) == before and before
        return state

    state = start()
    said = capsys.readouterr().out
    for line in ("processes: 1, each with 8 devices; mesh: 8 along the batch", "batch: 8 images, 1 per device",
                 "state: ", "step: ", "temporaries "):  # fmt: skip
        assert line in said, line
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, position={"step": 1, "seed": 0}, metrics=None)
    assert int(start().step) == 2


def test_facts_of_a_data_set_that_is_not_here():
    config = default.get_config()
    with pytest.raises(ValueError, match="--image_shape is missing"):
        build.assume_facts(config, 10)
    with pytest.raises(ValueError, match="--classes = 1 is out of range"):
        build.assume_facts(config, 1, image_shape=(8, 8))
    with pytest.raises(ValueError, match="--image_shape = 8: give a height and a width"):
        build.assume_facts(config, 10, image_shape=(8,))
    with pytest.raises(ValueError, match="--image_shape = 8,wide: give a height and a width"):
        build.assume_facts(config, 10, image_shape=(8, "wide"))
    facts = build.assume_facts(config, 10, 5000, (8, 9))
    assert facts.image_shape == (8, 9, 3) and facts.examples == 5000 and facts.mean[0] == 0.379278
    config.data.name, config.data.canvas = "unknown", 12
    facts = build.assume_facts(config, 10)
    assert facts.image_shape == (12, 12, 3) and facts.mean == (0.5,) * 3 and facts.examples == 128_000


def test_a_run_and_its_plan_have_the_same_program(images, tmp_path):
    config = tiny_runs.tiny_config(images)
    run, state = build_run(config, str(tmp_path))
    facts = build.read_facts(build.create_data(config))
    planned = preview.lower_shapes([config], facts, None, None)
    assert planned.as_text() == run.lower(state).as_text()


@pytest.mark.parametrize("method", ["ce", "sgt", "decor", "sdecor", "gradpen"])
@pytest.mark.parametrize("other", ["ce", "sdecor", "gradpen"])
def test_a_method_is_changed_to_another(method, other):
    config = default.get_config(f"method={other}")
    changed = build.change_method(config, method)
    build.check_config(changed)
    assert changed.method == method and config.method == other


def test_compile_only_prints_and_writes_what_the_step_takes(images, tmp_path):
    base = ["--config=configs/default.py:method=sdecor", "--compile_only", "--config.model.widths=(6,)"]
    base += ["--config.train.batch_size=8", "--classes=3", "--image_shape=8,8"]
    stand_in = ["--compile_methods=ce,decor", f"--json={tmp_path}/a/numbers.json"]
    lists = [
        [*base, *stand_in],
        [
            *base,
            f"--workdir={tmp_path}/run",
            "--replica=seed=0",
            "--replica=optim.lr=0.1",
            "--config.train.accumulate=2",
        ],
        [*base, "--config.train.batch_size=9"],
        [*base, "--compile_methods=best"],
        [*base, "--compile_methods=ce", "--replica=seed=0", "--replica=seed=1"],
        [*base[:-2], "--examples=100", "--config.data.name=none_such"],
        [*base[:-2], "--config.data.name=cifar10", f"--config.data.data_dir={tmp_path}"],
        ["--config=configs/default.py"],
    ]
    env = {"JAX_NUM_CPU_DEVICES": "2", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    (first, second, *wrong) = command_lines.answers("train", lists, env)
    assert first[0] == 0, first[1]
    report = json.loads((tmp_path / "a/numbers.json").read_text())
    assert list(report["methods"]) == ["ce", "decor"] and report["devices"] == 2 and report["batch_size"] == 8
    for each in report["methods"].values():
        assert each["fits"] is None and each["flops"] > 0 and each["memory"]["peak"] > each["memory"]["temporaries"] > 0
        assert each["collectives"]["all-reduce"]["count"] > 0 and each["compile_seconds"] > 0
    moved = {method: each["collectives"]["all-reduce"]["bytes"] for method, each in report["methods"].items()}
    assert moved["ce"] < moved["decor"]
    for line in ("sdecor: the step on 2 × cpu", "batch: 8 images, 4 per device", "all-reduce", "× FLOPs", "1.00"):
        assert line in first[1], line
    assert second[0] == 0, second[1]
    assert "8 images for each of 2 replicas, 4 per device in 2 micro-batches" in second[1]
    assert json.loads((tmp_path / "run/compiled.json").read_text())["replicas"] == 2
    assert not (tmp_path / "run/config.json").exists()
    messages = ("config.train.batch_size = 9 does not divide", "training method", "leave out --replica",
                "go with --classes", "Or name --classes", "--workdir is missing")  # fmt: skip
    for (status, output), message in zip(wrong, messages, strict=True):
        assert status == 1 and message in output and "Traceback" not in output, output


def test_a_batch_that_does_not_fit_is_told_with_the_largest_that_does():
    config = default.get_config("method=ce")
    config.model.widths, config.train.batch_size = (6,), 512
    facts = build.assume_facts(config, 3, image_shape=(8, 8))
    plan = compiled.Plan("ce", jax.devices(), 512, 1, 1)

    def lower(method, batch_size):
        config.train.batch_size = batch_size
        return preview.lower_shapes([config], facts, None, None)

    small = compiled.analyse(compiled.compile_timed(lower("ce", 64)), images=8, device=jax.devices()[0])
    chip = compiled.Chip("tiny", small["memory"]["peak"] + 1, 1e12, 1e9)
    with mock.patch.dict(compiled.CHIPS, {"cpu": chip}):
        report = compiled.report(plan, ["ce"], lower, say=lambda line: None)
    found = report["methods"]["ce"]
    assert not found["fits"] and found["largest_batch"]["exact"] and found["largest_batch"]["batch_size"] >= 64
    assert found["estimated_seconds"] > 0 and found["flop_utilisation"] > 0
    text = compiled.describe(report)
    assert f"ce: a batch of 512 does not fit; {found['largest_batch']['batch_size']} is the largest that fits" in text


def test_a_topology_needs_the_tpu_compiler():
    with mock.patch.object(importlib.util, "find_spec", lambda name: None):
        with pytest.raises(ValueError, match="--topology=v5e:2x4 needs the TPU compiler.*requirements-tpu.txt"):
            parallel.topology_devices("v5e:2x4")


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_step_is_compiled_for_a_tpu_slice(tmp_path):
    base = ["--config=configs/default.py:method=sdecor,runlocal", "--compile_only", "--config.model.widths=(8,)"]
    base += ["--classes=10", "--image_shape=16,16"]
    lists = [[*base, "--topology=v5e:2x4", f"--json={tmp_path}/numbers.json"], [*base, "--topology=v5e:3x5x7"]]
    (status, output), wrong = command_lines.answers("train", lists)
    assert status == 0, output
    report = json.loads((tmp_path / "numbers.json").read_text())
    found = report["methods"]["sdecor"]
    assert report["device"]["kind"] == "TPU v5 lite" and report["devices"] == 8 and found["fits"] is True
    assert found["collectives"]["all-reduce"]["count"] > 0 and found["estimated_seconds"] > 0
    assert wrong[0] == 1 and "--topology=v5e:3x5x7: " in wrong[1] and "Traceback" not in wrong[1]


def test_compiling_the_step_has_no_time_limit(monkeypatch):
    class State(NamedTuple):
        step: np.ndarray
        params: np.ndarray

    beats = []
    monkeypatch.setattr("sdecor.core.watchdog.beat", lambda what, *, timed=True: beats.append((what, timed)))

    def lower(state, steps):
        assert beats == [("the compilation of the step", False)]
        return jax.jit(lambda x: x + 1).lower(1.0)

    schedule = build.Schedule(steps_per_epoch=1, total=2, warmup=0, eval_every=1, checkpoint_every=None)
    run = types.SimpleNamespace(config=default.get_config(), members=[0], schedule=schedule, lower=lower)
    compile_step(run, State(np.zeros((), np.int32), np.zeros(3, np.float32)))
    assert beats
