"""``python -m benchmarks.inference``: with small numbers it runs, and what it writes follows from what it measured."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import inference, inference_memory, inference_report, integer_decisions
from benchmarks.inference_engines import Layer, layers_of
from benchmarks.inference_networks import folded_network
from benchmarks.measuring import RESULTS
from lightning_tspike import zoo
from lightning_tspike.analysis.speed import count_spikes
from lightning_tspike.inference.integer_network import why_not
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_small_run(tmp_path: Path, threads: None) -> None:
    words = "--network test_resnet --size 32 --rounds 2 --batches 2 --timesteps 1,2 --threads 1 --no-compile"
    inference.main([*words.split(), "--parts", "speed,engines", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "inference.json").read_text())
    assert 0.5 < results["firing rates"]["mean"] < 0.75  # as networks that were trained
    speed = results["speed"]
    spiking = {(row["batch"], row["T"], row["runtime"]) for row in speed if row["network"] == "ternary"}
    there = ["eager", "channels last"] + ["integer"] * (why_not() is None)
    assert spiking == {(2, timesteps, name) for timesteps in (1, 2) for name in there}
    ann = {row["runtime"]: row for row in speed if row["network"] == "ANN"}
    assert min(ann[name]["time / ANN"] for name in ("eager", "channels last")) == 1
    if find_spec("onnxruntime") and find_spec("onnxscript"):
        assert ann["ONNX Runtime int8"]["median, ms"] > 0
    engines = results["engines"]
    assert engines.get("oneDNN int8 differs by", 0) < 1e-5  # int8 weights and spikes are exact
    assert engines["rows"][-1]["in the network"] == sum(row["in the network"] for row in engines["rows"][:-1])
    assert inference_report.section(results) in (tmp_path / "inference.md").read_text()


def test_the_network_fires_as_a_trained_one() -> None:
    network = folded_network("resnet10t", 2, 32)
    rates = {name: layer.firing_rate for name, layer in count_spikes(network, torch.randn(4, 3, 32, 32)).items()}
    assert all(0.4 < rate.total < 0.9 for rate in rates.values())
    assert all(min(rate.positive, rate.negative) > 0.03 for rate in rates.values())  # residual branches work, too


def test_which_layers_are_compared() -> None:
    network = create_network(NetworkConfig("tspike_resnet_small", num_classes=10, timesteps=1))
    layers = layers_of(network.model, torch.zeros(1, 3, 32, 32))
    assert not any(layer.channels == 3 for layer in layers)  # the images are no spikes
    assert all(isinstance(layer, Layer) and layer.kernel in (1, 3) for layer in layers)


@pytest.mark.slow  # a process that imports all
@pytest.mark.skipif(not inference_memory.CLEAR.exists(), reason="the system does not tell a process's peak")
def test_memory_grows_with_the_batch(tmp_path: Path) -> None:
    network = folded_network("test_resnet", 2, 32)
    torch.save(network, tmp_path / "network.pt")
    one, eight = inference_memory.measure_memory(
        ["channels last"], tmp_path / "network.pt", batches=[1, 8], size=128, threads=1
    )
    peak = "peak of a forward pass, MiB"
    assert 4 < eight[peak] / one[peak] < 12
    weights = sum(p.numel() * p.element_size() for p in network.parameters()) / 2**20
    assert 0.8 * weights < one["held, MiB"] < 10 * weights


def made_up(**changes: Any) -> dict[str, Any]:
    def row(network: str, runtime: str, t: int | None, ms: float) -> dict[str, Any]:
        return {"batch": 1, "network": network, "runtime": runtime, "T": t, "fastest, ms": ms, "median, ms": ms,
                "images/s": 1e3 / ms, "time / ANN": ms / 20, "fastest / ANN's fastest": ms / 20}  # fmt: skip

    peak, held = "peak of a forward pass, MiB", "held, MiB"
    return {
        "command": "python -m benchmarks.inference",
        "machine": {"threads": 2, "processor": "a CPU", "vector instructions": "AVX512", "torch": "2.8"},
        "network": "resnet18",
        "image": [3, 224, 224],
        "timesteps": [4],
        "firing rates": {"mean": 0.6},
        "weights": {"float32": 400, "integer": 100, "in float32": {"conv1": "it reads images"}},
        "speed": [
            row("ternary", "eager", 4, 60), row("ternary", "integer", 4, 18), row("ANN", "eager", None, 20),
            row("SpikingJelly", "eager", 4, 63),
        ],
        "memory": [
            {"runtime": "eager", "batch": 1, held: 50, peak: 20.0},
            {"runtime": "channels last", "batch": 1, held: 50, peak: 16.0},
            {"runtime": "integer", "batch": 1, held: 12, peak: 9.0},
        ],
    } | changes  # fmt: skip


def test_what_was_to_be_reached() -> None:
    goals = {row["what"]: (row["measured"], row["reached"]) for row in inference_report.goals_of(made_up())}
    assert goals == {
        "time / ANN, batch 1, T = 4": ("0.90", "yes"),
        "SpikingJelly / time, batch 1, T = 4": ("3.50", "no"),
        "weights / float32": ("0.25", "yes"),
        "peak of a forward pass / float32, batch 1": ("0.56", "no"),  # of the less thirsty float32 form
    }
    assert inference_report.goals_of(made_up(network="resnet34")) == []
    text = inference_report.section(made_up())
    assert re.search(r"\| integer \| 0\.90 \|", text)
    assert re.search(r"\| eager \| 20\.0 \| 1\.00 \|", text)


def test_the_section_goes_between_its_comments(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{inference_report.BEGIN}what stood here\n{inference_report.END}\nafter\n")
    inference_report.write_docs(made_up(), page)
    inference_report.write_docs(made_up(), page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "what stood here" not in text
    assert text.count("| integer | 0.90 |") == 1
    page.write_text("no place")
    with pytest.raises(ValueError, match="must have the lines"):
        inference_report.write_docs(made_up(), page)


def test_docs_say_what_was_measured() -> None:
    """``python -m benchmarks.inference --docs`` writes it."""
    found = inference_report.DOCS.read_text().partition(inference_report.BEGIN)[2].partition(inference_report.END)[0]
    file = RESULTS / "inference.json"
    assert found == (inference_report.section(json.loads(file.read_text())) if file.exists() else "")


def test_unknown_part(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        inference.main(["--parts", "speed,size"])
    assert "--parts has size; there are speed, memory, engines" in capsys.readouterr().err


@pytest.mark.skipif(why_not() is not None, reason="no integer runtime on this machine")
def test_integers_decide_as_float32_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = integer_decisions.main(["--output", str(tmp_path)])
    (row,) = results["rows"]
    assert (row["entry"], row["samples"]) == ("tspike-digits", 360)
    assert integer_decisions.holds(row)
    assert row["decided differently"] == round(360 * (1 - row["alike"]))
    assert set(results["left out"]) == set(zoo.list(status="trained")) - {"tspike-digits"}  # they need a folder
    page = (tmp_path / "integer_decisions.md").read_text()
    assert "| tspike-digits | 360 |" in page
    assert "tspike-cifar10" in page
    assert not integer_decisions.holds(row | {"alike": 0.998})
    assert not integer_decisions.holds(row | {"accuracy, integer": row["accuracy, card"] - 0.002})
    with pytest.raises(SystemExit):
        integer_decisions.main(["tspike-digit=."])
    assert "there is no trained entry tspike-digit; there are" in capsys.readouterr().err
