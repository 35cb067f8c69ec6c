"""Joules from a machine's counters."""

from __future__ import annotations

import pytest

from draftrank.measure.machine.energy import EnergyMeter
from machine_roots import write

ZONES = "sys/class/powercap/intel-rapl:"


def counters(first: int, second: int) -> dict[str, str]:
    return {
        f"{ZONES}0/energy_uj": f"{first}\n",
        f"{ZONES}0/max_energy_range_uj": "1000000000\n",
        f"{ZONES}0:0/energy_uj": "77\n",  # a part of the package
        f"{ZONES}1/energy_uj": f"{second}\n",
        f"{ZONES}1/max_energy_range_uj": "1000000000\n",
    }


def test_packages_are_summed_and_counters_that_begin_anew_are_known(tmp_path):
    root = write(tmp_path, counters(5_000_000, 999_000_000))
    meter = EnergyMeter("cpu", root=root)
    write(root, counters(6_500_000, 2_000_000))
    assert meter.end() == pytest.approx(1.5 + 3.0)
    meter.begin()
    assert meter.end() == 0.0


def test_a_machine_without_counters_or_that_hides_them_tells_nothing(tmp_path):
    assert EnergyMeter("cpu", root=tmp_path).end() is None
    root = write(tmp_path / "hidden", counters(1, 1) | {f"{ZONES}1/energy_uj": "denied\n"})
    assert EnergyMeter("cpu", root=root).end() is None
