"""The benchmarks run, on a CPU and with small numbers, and write what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, measuring, paper_energy


@pytest.mark.slow
def test_gpu_script_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    gpu.main(["--device", "cpu", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["contract"]["cases"] > 100
    assert results["contract"]["spikes that differ"] == 0
    assert results["contract"]["largest relative difference of a gradient"] < 1e-5
    assert {row["current"].rpartition(" ")[2] for row in results["bandwidth"]} == {"layer", "channel", "channels_last"}
    neuron = json.loads((tmp_path / "neuron_cpu_float32.json").read_text())
    kept = {row["layer"]: row["kept, bytes per element"] for row in neuron["rows"] if row["T"] == 4}
    assert kept["ternary_lif"] < 1 < kept["eager"]
    assert (tmp_path / "neuron_cpu_float32.png").stat().st_size > 1000
    steps = json.loads((tmp_path / "train_step_cpu_resnet34.json").read_text())
    by_name = {row["network"]: row for row in steps["rows"]}
    assert by_name["lean"]["kept / eager"] < 0.2
    assert all(row["ms"] > 0 for row in steps["rows"])
    for name in ("gpu", "neuron_cpu_float32", "train_step_cpu_resnet34"):
        assert "| ---" in (tmp_path / f"{name}.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_gpu_script_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--device cpu" in capsys.readouterr().err


def test_lines() -> None:
    fit = measuring.line([1, 2, 4], [5, 7, 11])
    assert fit == pytest.approx({"slope": 2, "intercept": 3, "r2": 1})
    assert measuring.line([1, 2, 3], [1, 0, 1])["r2"] == pytest.approx(0)


def test_kept_bytes() -> None:
    x = torch.randn(1000, requires_grad=True)
    assert 4000 <= measuring.kept_bytes(lambda: x * 2, "cpu") < 4100  # the number 2 is kept, too
    assert measuring.kept_bytes(lambda: x.sin().sum(), "cpu") < 100  # sin keeps x, which was there
    assert 4000 <= measuring.kept_bytes(lambda: x.exp().sum(), "cpu") < 4100  # exp keeps its result


def test_the_papers_energies_and_signs() -> None:
    """Its energies follow from its counts, and its signs from two choices of stages of its ResNet-20, no others."""
    assert [f"{row.recomputed:.2f}" for row in paper_energy.TABLE_5] == ["50.14", "51.20"]
    stages = {f"stages.{i}": 4 * (64 << i) * (16 >> i) ** 2 for i in range(4)}
    found = paper_energy.sign_counts({"stem": 3 * 64 * 32 * 32, **stages})
    assert [(row["neurons of"], row["steps"]) for row in found] == [
        ("stages.0, stages.1, stages.2", 1),
        ("stages.1, stages.2, stages.3", 2),
    ]
    assert {(row["binary"], row["ternary"]) for row in found} == {(114_688, 229_376)}
