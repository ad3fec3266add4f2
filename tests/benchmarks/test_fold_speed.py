"""``python -m benchmarks.fold_speed``."""

from __future__ import annotations

from benchmarks.fold_speed import FOLDED, INTEGER, UNFOLDED, fold_table, measure
from lightning_tspike import zoo


def test_what_is_measured_of_a_network() -> None:
    network = zoo.load("tspike-digits", folded=False)
    found = measure(network, rounds=2)
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert found["bytes"][INTEGER] < 0.3 * found["bytes"][FOLDED] < 0.31 * found["bytes"][UNFOLDED]
    text = fold_table([{"network": "tspike-digits", "T": 4, **found}])
    assert f"{found['ratios'][INTEGER]:.2f}" in text
