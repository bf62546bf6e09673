"""Tests of attribution methods on many kinds of networks: the table of docs/networks.md and its script."""

import numpy as np
import pytest

from sdecor.attribution import METHOD_INFO, explain
from studies import supported
from studies.kinds import KINDS, SHAPE, Kind, plain
from studies.supported import Trial, computed, images, problem_of, tried

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


def test_a_module_with_nnx_transforms_is_refused_with_the_remedy():
    with pytest.raises(Exception, match="Cannot mutate") as refusal:
        explain(KINDS["nnx_remat"].build(), images(), 0)
    assert "nnx.merge(graph, state, copy=True)" in "".join(refusal.value.__notes__)


def test_the_table_has_a_row_for_each_kind_and_names_each_reason_once():
    text = supported.DOCUMENT.read_text()
    assert all(f"\n| {kind.title} | " in text for kind in KINDS.values())
    trials = {"swin": {"gradient": Trial(), "grad_cam": Trial("no | grid"), "layer_cam": Trial("no | grid")}}
    assert supported.table(trials).endswith("| 1 of 3 | `grad_cam`, `layer_cam`: no \\| grid |")
    assert supported.table({"vit": {"gradient": Trial()}}).endswith("| all 1 |  |")


def test_a_wrong_map_is_found():
    def changed():
        return lambda image: 1.01 * plain()(image)

    wrong, fn = Kind("wrong", changed, plain), plain()
    ((values, error),) = computed(changed(), "gradient", images())
    assert "differs from its twin by 0.01" in problem_of(wrong, fn, "gradient", values, error)
    assert "other image by 0.01" in problem_of(KINDS["jit"], fn, "gradient", values, error, values / 1.01)
    assert problem_of(KINDS["jit"], fn, "gradient", np.full((2, *SHAPE), np.nan), error) == "not finite"
    assert problem_of(KINDS["jit"], fn, "gradient", 0 * values, error) == "all values are 0"
    assert "completeness errors [0. 9.]" in problem_of(KINDS["jit"], fn, "deeplift", values, np.float32([0, 9]))
    assert "but has" in problem_of(KINDS["jit"], fn, "integrated_gradients", values + 1, 0 * error)


@pytest.mark.full
@pytest.mark.parametrize("name", KINDS)
def test_every_method_is_right_or_refuses_as_the_table_says(name):
    row = {method: tried(KINDS[name], method) for method in METHOD_INFO}
    assert not {method: trial.problem for method, trial in row.items() if trial.problem}
    assert supported.table({name: row}).splitlines()[-1] in supported.DOCUMENT.read_text().splitlines()
