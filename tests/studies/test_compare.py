"""Tests of a study's table: values of several files are joined, and tests are those of SciPy."""

import pathlib

import numpy as np
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
    joined = compare.join([first, second])
    measures = ["accuracy", "gradient/gini"]
    tests = compare.differences(joined, ["sdecor"], ["ce"], measures)
    expected = [stats.ttest_rel(values["sdecor", name], values["ce", name]).pvalue for name in measures]
    np.testing.assert_allclose([test.p for test in tests.values()], expected, rtol=1e-9)
    found = compare.corrected(tests, ["sdecor"])
    small, large = sorted(expected)
    np.testing.assert_allclose(sorted(found.values()), sorted([min(1, 2 * small), max(min(1, 2 * small), large)]))
    text = compare.table(joined, ["sdecor"], ["ce"], measures, ["sdecor"])
    mean = 100 * values["ce", "accuracy"].mean()
    assert f"| accuracy ↑ | {mean:.1f} [" in text and text.count("\n") == 5 and text.endswith("ce 5, sdecor 5")
