"""Tests of traces: which steps are traced, where the trace is, and values that are refused."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from sdecor.training import profiling


def taken(profiler: profiling.Profiler, start: int, total: int) -> None:
    double = jax.jit(lambda x: (2 * x, {"loss": x}))
    for step in range(start + 1, total + 1):
        state, terms = profiler.take(range(step, step + 1), double, jnp.float32(step))
        assert (state, terms["loss"]) == (2 * step, step)
    profiler.close()


@pytest.mark.parametrize(
    ("text", "start", "steps"),
    [
        ("3", 0, [3, 4, 5]),
        ("3", 7, [10]),  # cut at the last step
        ("5:6", 0, [5, 6]),
        ("5:6", 5, [6]),
        ("5:6", 6, []),
        ("9:900", 0, [9, 10]),
        (None, 0, []),
    ],
)
def test_the_chosen_steps_are_traced(monkeypatch, tmp_path, capsys, text, start, steps):
    calls, now = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **options: now.append("tracing"))
    monkeypatch.setattr(jax.profiler, "stop_trace", now.clear)
    profiler = profiling.Profiler(profiling.parse(text), str(tmp_path), start=start, total=10)
    for step in range(start + 1, 11):
        profiler.take(range(step, step + 1), lambda step=step: (None, {"tracing": calls.append((step, bool(now)))}))
    profiler.close()
    assert [step for step, traced in calls if traced] == steps and not now
    output = capsys.readouterr().out
    assert ("Trace in " in output) == bool(steps) and ("Nothing is traced" in output) == (text == "5:6" and start == 6)


def test_the_trace_is_in_the_folder_of_the_run(tmp_path, capsys):
    profiler = profiling.Profiler(profiling.parse("2:3"), str(tmp_path), start=0, total=4)
    taken(profiler, 0, 4)
    assert str(tmp_path / "profile") in capsys.readouterr().out
    (trace,) = tmp_path.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
    assert list(trace.parent.glob("*.xplane.pb"))
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert any("PjitFunction" in str(name) for name in names)


@pytest.mark.parametrize("text", ["0", "", "-1", "3:2", "0:4", "a", "1:2:3", "1.5"])
def test_a_text_that_names_no_steps_is_refused(text):
    with pytest.raises(ValueError, match=f"--profile = {text!r} names no steps"):
        profiling.parse(text)


def test_steps_after_the_last_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--profile begins at step 11, and the run has 10 steps"):
        profiling.Profiler(profiling.parse("11:12"), str(tmp_path), start=0, total=10)
