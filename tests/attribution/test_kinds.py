"""Tests of attribution methods on many kinds of networks: the table of docs/networks.md and its script."""

import jax
import numpy as np
import pytest

from sdecor.attribution import METHOD_INFO
from studies import supported
from studies.kinds import KINDS, plain
from studies.supported import Trial, explained, image, tried

# bfloat16 is in the full suite only, and a module that is changed while it is traced is an error of Flax's own.
SAME = [name for name, kind in KINDS.items() if kind.twin is plain and name not in ("bfloat16", "nnx_jit", "nnx_remat")]
RULES = ("scan", "custom_vjp", "equinox")  # where LRP, which reads the equations, is compared too


@pytest.mark.full
def test_one_network_written_in_many_ways_has_one_map():
    def maps(fn, methods):
        return {method: explained(fn, method, jit=False)[0] for method in methods}

    def all_maps():
        found = {name: maps(KINDS[name].build(), ("gradient", "lrp")[: 1 + (name in RULES)]) for name in SAME}
        return maps(plain(), ("gradient", "lrp")), found

    expected, found = jax.device_get(jax.jit(all_maps)())
    assert len(found) > 10
    for name, own in found.items():
        for method, values in own.items():
            largest = np.abs(expected[method]).max()
            np.testing.assert_allclose(
                values, expected[method], rtol=0, atol=1e-4 * largest, err_msg=f"{name}/{method}"
            )


REFUSED = {
    ("nnx_jit", "gradient"): "TraceContextError: Cannot mutate",
    ("perceptron", "grad_cam"): "no convolution",
    ("swin", "grad_cam"): "an attention maybe, sums over 4 elements",
    ("convnext", "guided_backpropagation"): "ReLU",
    ("plain", "attention_rollout"): "attention",
    ("single_logit", "rise"): "logit",
    ("loop", "gradient"): "while",
}


@pytest.mark.parametrize("kind, method", REFUSED)
def test_what_a_method_cannot_do_is_an_error_before_anything_is_computed(kind, method):
    assert REFUSED[kind, method] in tried(KINDS[kind], method, trace=True).refusal


def test_the_table_has_a_row_for_each_kind_and_names_each_reason_once():
    text = supported.DOCUMENT.read_text()
    assert all(f"\n| {kind.title} | " in text for kind in KINDS.values())
    trials = {"swin": {"gradient": Trial(), "grad_cam": Trial("no | grid"), "layer_cam": Trial("no | grid")}}
    assert supported.table(trials).endswith("| 1 of 3 | `grad_cam`, `layer_cam`: no \\| grid |")
    assert supported.table({"vit": {"gradient": Trial()}}).endswith("| all 1 |  |")


def test_a_wrong_map_is_found():
    kind = KINDS["plain"]
    twin = kind.build
    changed = lambda: lambda image: 1.01 * twin()(image)  # noqa: E731
    wrong = KINDS["plain"].__class__("wrong", changed, twin)
    values, error = explained(changed(), "gradient")
    assert "differs from its twin by 0.01" in supported.problem_of(wrong, changed(), "gradient", values, error)
    assert supported.problem_of(kind, twin(), "gradient", np.full((8, 8, 3), np.nan), error) == "not finite"
    assert "completeness" in supported.problem_of(kind, twin(), "deeplift", values, np.float32(9))
    assert image().shape == (8, 8, 3)


@pytest.mark.full
@pytest.mark.parametrize("name", KINDS)
def test_every_method_is_right_or_refuses_as_the_table_says(name):
    row = {method: tried(KINDS[name], method) for method in METHOD_INFO}
    assert not {method: trial.problem for method, trial in row.items() if trial.problem}
    assert supported.table({name: row}).splitlines()[-1] in supported.DOCUMENT.read_text().splitlines()
