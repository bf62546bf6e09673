"""Tests of --methods and --metrics: names, presets, options and their errors."""

import jax.numpy as jnp
import pytest

from sdecor.attribution import METHODS, smoothgrad
from sdecor.evaluation import METHOD_PRESETS, METRIC_PRESETS, Method, choose_methods, choose_metrics, split_words
from sdecor.metrics import DATASET_METRICS, METRICS


def test_presets_grow_and_hold_what_there_is():
    for presets, known in ((METHOD_PRESETS, METHODS), (METRIC_PRESETS, METRICS | DATASET_METRICS)):
        quick, standard, full = (set(presets[name]) for name in ("quick", "standard", "full"))
        assert quick < standard < full <= set(known)
    assert list(METHOD_PRESETS["full"]) == list(METHODS)
    assert METHOD_PRESETS["quick"] == ("gradient",)


def test_presets_and_names_combine_and_named_ones_are_known():
    chosen = choose_methods(["quick", "smoothgrad", "gradient"])
    assert {key: named for key, (_, named) in chosen.items()} == {"gradient": True, "smoothgrad": True}
    assert not choose_methods(["standard"])["gradient"][1]
    metrics = choose_metrics(["quick", "gini", "entropy"])
    assert metrics["gini"] and metrics["entropy"] and not metrics["insertion"]
    assert choose_metrics(["insertion_vs_random", "energy_ratio"]) == {"insertion": True, "energy_inside": True}


def test_options_are_values_and_the_key_names_those_that_differ():
    ((method, _),) = choose_methods(["smoothgrad:scale=0.3:samples=5:relative=True"]).values()
    assert method.key == "smoothgrad:samples=5:scale=0.3" and method.function is smoothgrad
    found = method.settings("log_probability")
    assert found == {"samples": 5, "scale": 0.3, "relative": True, "saliency_of": "log_probability"}
    ((plain, _),) = choose_methods(["smoothgrad:samples=25"]).values()
    assert plain.key == "smoothgrad" and plain.settings("logit")["samples"] == 25


def test_a_method_explains_its_own_score_unless_that_is_the_logit():
    (rise, _), (gradient, _) = choose_methods(["rise", "gradient:saliency_of=probability"]).values()
    assert rise.settings("log_probability")["saliency_of"] == "probability"
    assert gradient.settings("log_probability")["saliency_of"] == "probability"


def test_contributions_are_told_from_slopes():
    chosen = choose_methods(["gradient", "smoothgrad", "integrated_gradients:steps=3", "lrp", "grad_cam"])
    found = {key: method.contributions for key, (method, _) in chosen.items()}
    assert [key for key, value in found.items() if value] == ["integrated_gradients:steps=3", "lrp"]


def test_a_bound_method_explains_one_image(key):
    ((method, _),) = choose_methods(["smoothgrad:samples=2"]).values()
    explain_of = method.bind("logit")
    image = jnp.arange(12.0).reshape(2, 2, 3)
    found = explain_of(lambda x: jnp.stack([2 * x.sum(), x[0, 0, 0]]), image, 0, key)
    assert found.shape == image.shape and jnp.allclose(found, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smothgrad"], "--methods = 'smothgrad' is not known; did you mean 'smoothgrad'"),
        (["smoothgrad:sample=3"], "option of smoothgrad = 'sample' is not known; did you mean 'samples'"),
        (["smoothgrad:key=3"], "option of smoothgrad = 'key' is not known"),
        (["smoothgrad:samples"], "name:option=value|smoothgrad:option=value"),
        (["quick:samples=3"], "a preset takes no options"),
        ([], "--methods is empty"),
    ],
)
def test_what_is_not_known_is_an_error(words, message):
    with pytest.raises(ValueError, match=message):
        choose_methods(words)


def test_unknown_metrics_are_an_error():
    with pytest.raises(ValueError, match="--metrics = 'ginny' is not known; did you mean 'gini'"):
        choose_metrics(["quick", "ginny"])


def test_a_list_is_split_at_commas_outside_of_brackets():
    assert split_words("quick, occlusion:window=(4,4):stride=[2,2],lrp,") == [
        "quick",
        "occlusion:window=(4,4):stride=[2,2]",
        "lrp",
    ]
    for text in ("occlusion:window=(4,4", "lrp)", "a)(b"):
        with pytest.raises(ValueError, match="the brackets of .* do not match"):
            split_words(text)


def test_pairs_are_options_that_compare():
    for text in ("(4,4)", "[4, 4]"):
        ((method, _),) = choose_methods([f"occlusion:window={text}"]).values()
        assert method.settings("logit")["window"] == (4, 4)
        assert hash(method) and method.key == "occlusion:window=(4, 4)"
        assert choose_methods([method.key]) == {method.key: (method, True)}


def test_a_method_of_ones_own_has_no_row_by_its_name_alone():
    """The row of a registered method says what that function takes, such as `with_error`."""

    def own(fn, image, target, *, saliency_of="logit"):
        return image

    method = Method("lrp:own", own)
    assert method.info.function is own and not method.info.with_error and not method.contributions
    assert Method("lrp", METHODS["lrp"]).info.with_error
