"""Tests of tables: their numbers, units, order and marks."""

import pytest

from sdecor import report
from sdecor.report.html import facts_table, methods_table, plain
from sdecor.report.wording import format_interval, format_several, format_value, keys_by_method, method_title, title

SUMMARIES = {
    "ce": {
        "accuracy": {"mean": 0.8712, "low": 0.861, "high": 0.8818, "n": 500, "undefined": 0, "chance": 0.1},
        "gradient/insertion": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 499, "undefined": 1, "chance": 0.31},
        "effective_rank": {"mean": 14.26, "low": None, "high": None, "n": 500, "undefined": 0},
        "gradient/energy_inside": {"mean": None, "low": None, "high": None, "n": 0, "undefined": 500},
        "lrp/gini": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 500, "undefined": 0},
    },
    "sdecor <b>": {
        "accuracy": {"mean": 0.8533, "low": 0.842, "high": 0.8641, "n": 500, "undefined": 0, "chance": 0.1},
        "gradient/insertion": {"mean": 0.625, "low": 0.525, "high": 0.7, "n": 500, "undefined": 0, "chance": 0.42},
        "effective_rank": {"mean": 31.9, "low": None, "high": None, "n": 500, "undefined": 0},
        "gradient/energy_inside": {"mean": None, "low": None, "high": None, "n": 0, "undefined": 500},
        "lrp/gini": {"mean": 0.6, "low": 0.5, "high": 0.7, "n": 500, "undefined": 0},
    },
}
COMPARISONS = {
    "sdecor <b>": {
        "accuracy": {"mean": -0.0179, "low": -0.031, "high": -0.0042, "n": 500, "better": False},
        "gradient/insertion": {"mean": 0.125, "low": -0.01, "high": 0.26, "n": 499, "better": None},
        "effective_rank": {"mean": 17.64, "low": None, "high": None, "n": 500, "better": None},
        "lrp/gini": {"mean": 0.1, "low": 0.02, "high": 0.2, "n": 500, "better": True},
    }
}


def test_terminal_table_holds_the_numbers_and_marks_only_clear_differences():
    text = report.terminal_table(SUMMARIES, COMPARISONS)
    rows = {line.split("  ")[0].strip(): line for line in text.splitlines()}
    accuracy, insertion = rows["Accuracy ↑"], rows["Insertion area ↑"]
    for piece in ("10.0 %", "87.1 % [86.1, 88.2]", "85.3 % [84.2, 86.4]", "500", "−1.8 pp [−3.1, −0.4]  ✗ worse"):
        assert piece in accuracy
    assert "better" not in insertion and "worse" not in insertion
    for piece in ("+0.125 [−0.010, +0.260]", "499–500", "0.310 / 0.420"):
        assert piece in insertion
    assert "14.3" in rows["Effective rank of features ↑"] and "+17.6" in rows["Effective rank of features ↑"]
    assert rows["Saliency on the object ↑"].split()[-3:] == ["–", "–", "0"]
    assert "✓ better" in rows["Sparseness (Gini) ↑"]


def test_retest_error_stands_beside_its_value():
    entry = SUMMARIES["ce"]["gradient/insertion"] | {
        "retest": {"n": 499, "sd": 0.2, "of_mean": 0.012, "reliability": 0.9}
    }
    row = next(
        line for line in report.terminal_table({"ce": {"gradient/insertion": entry}}).splitlines() if "area" in line
    )
    assert "0.500 [0.400, 0.600] ± 0.012" in row
    page = methods_table({"gradient": ["gradient/insertion"]}, {"gradient/insertion": entry}, label="x")
    assert "<small>retest ± 0.012</small>" in page
    assert "±" not in report.terminal_table(SUMMARIES)


def test_terminal_table_has_a_block_for_the_model_and_one_for_each_method():
    lines = report.terminal_table(SUMMARIES, COMPARISONS).splitlines()
    rule = lines[1]
    assert set(rule) == {"─"} and len(rule) == max(map(len, lines[:-2]))
    headings = [after for line, after in zip(lines, lines[1:], strict=False) if line == rule]
    assert headings == ["Model", "Gradient", "LRP", lines[-2]]
    ce, sdecor = lines[0].index(" ce ") + 1, lines[0].index("sdecor")
    rows = [line for line in lines[1:-2] if line != rule and line not in headings]
    assert [row[ce - 1 : ce + 4] for row in rows] == [" 87.1", " 14.3", " –   ", " 0.50", " 0.50"]
    assert all(row[sdecor - 1] == " " != row[sdecor] for row in rows)


def test_several_differences_are_in_a_table_below():
    """With the values of three runs in the same table, lines would be wider than a terminal."""
    summaries = SUMMARIES | {"third": SUMMARIES["ce"]}
    text = report.terminal_table(summaries, COMPARISONS | {"third": {}})
    values, differences = text.split("\n\n")
    assert "pp" not in values and "85.3 % [84.2, 86.4]" in values
    lines = differences.splitlines()
    assert lines[0].split("  ")[0] == "Paired difference" and "sdecor <b> − ce" in lines[0] and "third − ce" in lines[0]
    (accuracy,) = [line for line in lines if line.startswith("Accuracy ↑")]
    assert accuracy.endswith("−1.8 pp [−3.1, −0.4]  ✗ worse")


def test_terminal_table_of_the_model_alone_has_no_headings():
    text = report.terminal_table({"ce": {"accuracy": SUMMARIES["ce"]["accuracy"]}})
    assert "paired difference" not in text and "Model" not in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize(
    ("key", "value", "signed", "text"),
    [
        ("accuracy", 0.5, False, "50.0 %"),
        ("accuracy", -0.004, True, "−0.4 pp"),
        ("lrp/gini", 0.1234, False, "0.123"),
        ("effective_rank", 123.4, False, "123"),
        ("dead_features", 7.0, False, "7"),
        ("gradient/energy_ratio", None, False, "–"),
        ("gradient/deletion_vs_random", 0.0, False, "0"),
        ("gradient/deletion_vs_random", -1e-9, True, "−1.0×10⁻⁹"),
        ("made_up", -1.5, True, "−1.50"),
        ("made_up", 2.34e7, False, "2.3×10⁷"),
        ("made_up", float("inf"), False, "–"),
    ],
)
def test_numbers_are_written_in_their_unit(key, value, signed, text):
    assert format_value(key, value, signed=signed) == text


def test_an_interval_has_the_digits_of_its_mean():
    assert format_interval("x", {"mean": 12.0, "low": 9.0, "high": 15.0}) == "12.0 [9.0, 15.0]"
    assert format_interval("x", {"mean": 2e-5, "low": -1e-6, "high": 4e-5}) == "2.0×10⁻⁵ [−1.0×10⁻⁶, 4.0×10⁻⁵]"
    assert format_interval("x", {"mean": 1e-6, "low": -0.2, "high": 0.2}, signed=True) == "+0.000 [−0.200, +0.200]"
    assert format_interval("gini", {"mean": 0.5, "low": None, "high": None}) == "0.500"


def test_metrics_and_methods_have_titles():
    assert title("grad_cam/gini") == title("gini") == "Sparseness (Gini)"
    assert title("gradient/made_up") == "made_up"
    names = ["integrated_gradients", "grad_cam_plus_plus", "rise:samples=100:cells=7"]
    assert list(map(method_title, names)) == ["Integrated gradients", "Grad-CAM++", "RISE (samples=100, cells=7)"]


def test_keys_are_grouped_by_method_in_reading_order():
    keys = ["a/deletion", "effective_rank", "a/made_up", "b:layer=x/y/gini", "accuracy", "a/gini"]
    assert keys_by_method(keys) == {
        "": ["accuracy", "effective_rank"],
        "a": ["a/gini", "a/deletion", "a/made_up"],
        "b:layer=x/y": ["b:layer=x/y/gini"],
    }


def test_many_values_are_written_as_their_ends():
    assert format_several(["1", "1", "1", "1"]) == "1"
    assert format_several(["1", "2", "1"]) == "1 / 2 / 1"
    assert format_several(["1", "2", "2", "3"]) == "1 … 3"


def test_methods_stand_side_by_side_with_the_best_in_bold():
    summary = {f"{m}/deletion": {"mean": mean, "low": None, "high": None, "n": 9, "undefined": 0} for m, mean in
               (("a", 0.3), ("b", 0.2), ("c", None))}  # fmt: skip
    table = methods_table({m: [f"{m}/deletion"] for m in "abc"}, summary, label="x")
    assert '<td>0.300</td><td><span class="best">0.200</span></td><td>–</td><td>9</td>' in table


def test_config_differences_lists_only_what_differs():
    a = {"method": {"decor_weight": 0.0, "fill": "uniform"}, "seed": 0}
    b = {"method": {"decor_weight": 0.1, "fill": "uniform"}, "seed": 0, "note": "x"}
    assert report.config_differences({"a": a, "b": b}) == [
        ("method.decor_weight", [0.0, 0.1]),
        ("note", [None, "x"]),
    ]


def test_facts_are_written_plainly():
    table = facts_table({"split": "test", "methods": {"gradient": {"of": "logit"}, "rise": {"samples": 9}}})
    for name, value in (("split", "test"), ("methods: gradient", "of logit"), ("methods: rise", "samples 9")):
        assert f'<th scope="row">{name}</th><td class="wrap">{value}</td>' in table
    assert plain({"jax": "0.10", "shape": [64, 64]}) == "jax 0.10, shape 64, 64"
    assert plain(1234567) == "1\u202f234\u202f567" and plain(4000) == "4000" and plain(True) == "True"


def test_number_of_marks_expected_by_chance_is_stated():
    text = report.terminal_table(SUMMARIES, COMPARISONS)
    assert "of 3 differences, about 1 would exclude 0 though the runs were equal" in text
    assert "though the runs were equal" not in report.terminal_table(SUMMARIES)


def test_metrics_relative_to_random_and_medians_have_words():
    assert title("gradient/road_vs_random") == "ROAD accuracy, relative to random"
    assert title("gradient/completeness") == "Completeness error, median"
    keys = ["road_vs_random", "masked_accuracy", "road", "insertion_vs_random", "insertion"]
    ordered = ["insertion", "insertion_vs_random", "road", "road_vs_random", "masked_accuracy"]
    assert keys_by_method(keys)[""] == ordered
    assert format_value("road_vs_random", 0.25) == "25.0 %"
