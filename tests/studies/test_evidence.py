"""Tests of the studies of docs/evidence: its rule of choice, its corrected tests, and its sweeps."""

import numpy as np
import pytest

from configs.sweeps import evidence as sweeps
from sdecor.sweep import commands, plan
from studies import choose, evidence


def values_of(cells: dict[str, list[float]], seeds: int = 1) -> dict:
    """Return the same values for each seed, plus the seed."""
    return {
        cell: {
            key: {seed: value + seed for seed in range(seeds)} for key, value in zip(sweeps.PRIMARY, row, strict=True)
        }
        for cell, row in cells.items()
    }


def test_gains_are_paired_and_positive_where_better():
    values = values_of({"ce": [0.5, 0.3, 0.1, 0.4, 0.3], "sgt_1": [0.6, 0.2, 0.1, 0.5, 0.2]}, seeds=2)
    values["ce"]["accuracy"][7] = 100.0  # a seed that the other cell lacks
    gained = choose.gains(values)["sgt_1"]
    np.testing.assert_allclose(list(gained.values()), [0.1, -0.1, 0.0, 0.1, 0.1], atol=1e-12)


def test_the_best_score_within_the_margin_is_chosen():
    rows = {
        "ce": [0.50, 0.0, 0.0, 0.0, 0.0],
        "decor_1": [0.49, 1.0, 1.0, 1.0, -1.0],
        "decor_2": [0.485, 2.0, 2.0, 2.0, -2.0],
        "decor_4": [0.47, 9.0, 9.0, 9.0, -9.0],  # sharper, but too inaccurate
        "sgt_1": [0.40, 9.0, 9.0, 9.0, -9.0],
        "sgt_3": [0.30, 9.0, 9.0, 9.0, -9.0],
    }
    chosen = choose.choose(choose.gains(values_of(rows)))
    assert chosen == {"ce": "ce", "decor": "decor_2", "sgt": "sgt_1"}


def test_scores_weigh_metrics_alike():
    rows = {"ce": [0.5, 0.0, 0.0, 0.0, 0.0], "a_1": [0.5, 1.0, 0.0, 0.0, 0.0], "b_1": [0.5, 0.0, 0.001, 0.0, 0.0]}
    rows |= {"c_1": [0.5, 0.0, 0.0, 1.0, -1.0]}
    scores = choose.scores(choose.gains(values_of(rows)))
    assert scores["ce"] == 0 and scores["a_1"] == pytest.approx(scores["b_1"]) == pytest.approx(scores["c_1"] / 2)


def test_tests_are_corrected_over_both_data_sets():
    rng = np.random.default_rng(0)
    noise = lambda: {seed: rng.normal() for seed in range(5)}  # noqa: E731
    found = {data: {cell: {key: noise() for key in sweeps.PRIMARY} for cell in evidence.METHODS} for data in "ab"}
    for seed, value in found["a"]["ce"]["accuracy"].items():
        found["a"][evidence.SDECOR]["accuracy"][seed] = value + 1 + 0.01 * seed
    tests = evidence.planned(found)
    flat = [test for each in tests.values() for test in each]
    assert len(flat) == 20 and {test.cell for test in flat} == {"sdecor (density)"}
    smallest = min(flat, key=lambda test: test.difference.p)
    assert (smallest.measure, smallest.reference, smallest.verdict) == ("accuracy", "ce", "better")
    assert smallest.p_holm == pytest.approx(20 * smallest.difference.p)
    text = "\n".join(evidence.pages(found))
    assert "corrected by Holm over 20 tests" in text and "sdecor (density) − sgt" in text


def test_secondary_metrics_are_means_and_differences():
    key = f"{evidence.SMOOTH}/energy_inside"
    values = {cell: {key: {0: 0.2, 1: 0.3}} for cell in ("ce", "sgt")}
    values["sdecor"] = {key: {0: 0.25, 1: 0.35}}
    table = evidence.secondary(evidence.named(values), "scenes")
    name = "sdecor (density)"  # today's name of the sweep's cell
    assert table.header == ["", "ce", "sgt", name, f"{name} − ce", f"{name} − sgt"]
    name = "SmoothGrad (samples=16): Saliency on the object (%) ↑"
    assert table.rows == [[name, "25.0 ± 63.5", "25.0 ± 63.5", "30.0 ± 63.5", "5.0 ± 0.0*", "5.0 ± 0.0*"]]


def test_the_figure_is_drawn(tmp_path):
    found = {"scenes": values_of({cell: [0.5 + k, 1.0, 2.0, 3.0, 4.0] for k, cell in enumerate(evidence.METHODS)}, 3)}
    evidence.draw(found, tmp_path / "evidence.png")
    assert (tmp_path / "evidence.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("part", sweeps.PARTS)
def test_every_part_is_a_sweep(part):
    sweep = plan.make(sweeps.get_config(part))
    lines = {tuple(commands.train_arguments(trial)) for trial in sweep.trials()}
    assert len(lines) == len(sweep.cells) * len(sweep.seeds)
    assert sweep.evaluate["split"] == ("test" if part.startswith("methods") else "val")


def test_an_unknown_part_is_named():
    with pytest.raises(ValueError, match="evidence.py:tier1 is no part of the study: name one of tuning_scenes"):
        sweeps.get_config("tier1")
