"""Tests of a study's table: values of several files are joined, and tests are those of SciPy."""

import pathlib

import numpy as np
import pytest
from scipy import stats

from studies import compare


def write(path: pathlib.Path, values: dict) -> pathlib.Path:
    rows = [
        f"{cell},{seed},{measure},{value}"
        for (cell, measure), numbers in values.items()
        for seed, value in enumerate(numbers)
    ]
    path.write_text("\n".join(["cell,seed,measure,value", *rows]) + "\n")
    return path


def test_the_table_has_paired_tests_that_are_corrected(tmp_path):
    rng = np.random.default_rng(0)
    names = [(cell, measure) for cell in ("ce", "sdecor") for measure in ("accuracy", "gradient/gini")]
    values = {name: rng.random(5).round(3) for name in names}
    first = write(tmp_path / "a.csv", {name: each for name, each in values.items() if name[1] == "accuracy"})
    second = write(tmp_path / "b.csv", {name: each for name, each in values.items() if name[1] != "accuracy"})
    joined = compare.join([str(first), str(second)])
    measures = ["accuracy", "gradient/gini"]
    tests = compare.differences(joined, ["sdecor"], ["ce"], measures)
    expected = [stats.ttest_rel(values["sdecor", name], values["ce", name]).pvalue for name in measures]
    np.testing.assert_allclose([test.p for test in tests.values()], expected, rtol=1e-9)
    found = compare.corrected(tests, ["sdecor"])
    small, large = sorted(expected)
    np.testing.assert_allclose(sorted(found.values()), sorted([min(1, 2 * small), max(min(1, 2 * small), large)]))
    text = compare.table(joined, ["sdecor"], ["ce"], measures, ["sdecor"])
    mean = 100 * values["ce", "accuracy"].mean()
    assert f"| accuracy ↑ | {mean:.1f} ± " in text and text.count("\n") == 5 and text.endswith("ce 5, sdecor 5")


def test_data_sets_are_kept_apart(tmp_path):
    one = write(tmp_path / "a.csv", {("ce", "accuracy"): [0.1, 0.2], ("sdecor", "accuracy"): [0.3, 0.5]})
    two = write(tmp_path / "b.csv", {("ce", "accuracy"): [0.5, 0.6], ("sdecor", "accuracy"): [0.3, 0.5]})
    with pytest.raises(ValueError, match="another file has another accuracy of ce, seed 0"):
        compare.join([str(one), str(two)])
    joined = compare.join([f"a:{one}", f"b:{two}"])
    tests = compare.differences(joined, ["a/sdecor", "b/sdecor"], ["a/ce", "b/ce"], ["accuracy"])
    assert list(tests) == [("a/sdecor", "a/ce", "accuracy"), ("b/sdecor", "b/ce", "accuracy")]


@pytest.mark.parametrize(
    "words,message",
    [
        (["--cells=x"], "'x' is no cell"),
        (["--planned=decor"], "--planned=decor is not in --cells=sdecor"),
        (["--measures=acuracy"], "--measures=acuracy is in no file: they have accuracy"),
    ],
)
def test_errors_say_what_is_right(words, message, tmp_path, monkeypatch, capsys):
    file = write(tmp_path / "a.csv", {("ce", "accuracy"): [0.1, 0.2], ("sdecor", "accuracy"): [0.3, 0.5]})
    monkeypatch.setattr("sys.argv", ["compare", str(file), "--measures=accuracy", *words])
    with pytest.raises(SystemExit):
        compare.main()
    assert message in capsys.readouterr().err
