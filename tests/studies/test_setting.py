"""Tests of the study of docs/evidence/setting.md: its sweeps."""

import pytest

from configs.sweeps import setting
from sdecor.sweep import plan


@pytest.mark.parametrize("name", setting.REGIMES)
def test_every_regime_is_a_sweep(name):
    for kind in ("curve", "tuning", "forms", *(["test"] if name in setting.CHOSEN else ["blocks"])):
        sweep = plan.make(setting.get_config(f"{kind}_{name}"))
        if kind in ("test", "blocks"):
            assert ("energy_inside" in sweep.evaluate["metrics"]) == setting.REGIMES[name]["boxes"]
    decays = {cell["optim.weight_decay"] for cell in plan.make(setting.get_config(f"tuning_{name}")).cells.values()}
    assert decays == set(setting.DECAYS)


def test_an_unknown_regime_is_named():
    with pytest.raises(ValueError, match="'test_x' is not known: choose one of smoothing, joint"):
        setting.get_config("test_x")
