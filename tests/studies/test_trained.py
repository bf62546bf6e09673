"""Tests of what studies measure on trained runs: metrics at a fitted temperature, and checkerboards."""

import pathlib
import shutil

import numpy as np
import pytest
import tiny_runs

from studies import lattice, temperature

FORMER = pathlib.Path(__file__).parents[1] / "former/run"


@pytest.mark.full
def test_rows_are_of_the_run(tmp_path, monkeypatch):
    folder = tmp_path / "cell/seed0"
    shutil.copytree(FORMER, folder)
    tiny_runs.draw_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    found = {name: value for cell, name, value in temperature.rows(folder, "test") if cell == "cell"}
    assert found["temperature"] > 0
    assert np.isclose(found["scaled/accuracy"], np.load(FORMER / "evaluation.npz")["accuracy"].mean())
    assert {name for _, name, _ in lattice.rows(folder, "test")} == {f"gradient/checkerboard_{p}" for p in (2, 4, 8)}
