"""The benchmark of many networks trained as one."""

from __future__ import annotations

import re

import pytest
import torch

import bench.pack
from bench.__main__ import main
from bench.pack import Turns, pack_configs
from fastlif import extension

pytestmark = pytest.mark.skipif(not extension.is_available(), reason="needs the compiled extension")
QUICK = ["pack", "--quick", "--networks", "3", "--batch-size", "20"]


def test_it_checks_and_times_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(QUICK) == 0
    text = capsys.readouterr().out
    assert "3 networks of randman, batches of 20" in text
    assert re.search(r"side by side takes \d+\.\d\d times as long", text)


def test_other_bits_are_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Touched(bench.pack.RunsSideBySide):
        def train_epoch(self, epoch, reporters):
            scores = super().train_epoch(epoch, reporters)
            with torch.no_grad():
                self._networks[1].readout.weight[0, 0] *= 1.0 + 1e-6
            return scores

    monkeypatch.setattr(bench.pack, "RunsSideBySide", Touched)
    assert main(QUICK) == 1
    assert "readout.weight of network 1" in capsys.readouterr().err


def test_its_runs() -> None:
    configs = pack_configs(16, 400)
    assert [config.seed for config in configs] == list(range(16))
    assert (configs[0].sigma_u, configs[-1].sigma_u) == (0.5, 2.0)
    assert pack_configs(1, 128)[0].batch_size == 128
    assert Turns([1.0, 2.0, 9.0], [2.0, 4.0, 6.0], 20, ()).ratio == 0.5
    with pytest.raises(SystemExit):
        main(["pack", "--networks", "0"])
