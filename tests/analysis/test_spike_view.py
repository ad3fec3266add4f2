"""What a network does with one input: recorded spike by spike, and shown as a page that a browser draws."""

from __future__ import annotations

import json
import re
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from lightning_tspike import ternarize, zoo
from lightning_tspike.analysis import record_spikes, write_spike_page
from lightning_tspike.folding import fold
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig


@pytest.fixture(scope="module")
def digit() -> Image.Image:
    return Image.fromarray((load_digits().images[5] / 16 * 255).astype(np.uint8))


def test_a_record_is_what_the_network_does(digit: Image.Image) -> None:
    """Logits, firing rates, and that neurons fire where the membrane potential reaches a threshold."""
    network = zoo.load("tspike-digits")
    x = zoo.transforms("tspike-digits")(digit)
    record = record_spikes(network, x)
    with torch.no_grad():
        torch.testing.assert_close(record.probabilities[-1], network(x[None]).softmax(-1)[0])
    assert [layer.name for layer in record.layers] == list(network.neurons())
    for layer in record.layers:
        assert layer.spikes.shape == layer.membrane.shape
        assert layer.spikes.shape[:2] == (4, min(16, layer.channels))
        assert torch.equal(layer.spikes, layer.membrane.sign().to(torch.int8) * (layer.membrane.abs() >= 1))
    first = record.layers[0]
    assert first.channels == len(first.shown)
    assert first.positive == pytest.approx([float((step > 0).float().mean()) for step in first.spikes])
    assert first.negative == pytest.approx([float((step < 0).float().mean()) for step in first.spikes])


def test_folded_and_unfolded_send_the_same_spikes(randomize: Callable[..., Any]) -> None:
    config = NetworkConfig("tspike_sew_resnet_small", num_classes=10, timesteps=3, in_chans=1, amplitude="channel")
    network = randomize(create_network(config))
    folded, _ = fold(network)
    x = torch.randn(1, 8, 8, dtype=torch.float64)
    ours, theirs = (record_spikes(one, x, channels=4).layers for one in (network, folded.double()))
    for a, b in zip(ours, theirs, strict=True):
        assert (a.name, a.shown) == (b.name, b.shown)
        assert torch.equal(a.spikes, b.spikes)
        assert set(a.spikes.unique().tolist()) <= {-1, 0, 1}


def test_when_it_is_decided(digit: Image.Image) -> None:
    record = record_spikes(zoo.load("tspike-digits"), zoo.transforms("tspike-digits")(digit))
    for likeliest, at in (([2, 2, 2, 2], 1), ([1, 1, 2, 2], 3), ([2, 2, 1, 2], 4)):
        rows = torch.nn.functional.one_hot(torch.tensor(likeliest), 10).float()
        assert replace(record, probabilities=rows).decided_at == at


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((1, 1, 8, 8, 8), 16, r"image \[C, H, W\] or frames \[T, C, H, W\], got shape"),
        ((1, 8, 8), 0, "at least 1, got 0"),
    ],
)
def test_what_cannot_be_recorded(shape: tuple[int, ...], channels: int, message: str) -> None:
    network = ternarize(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU()), 2, input_size=(1, 8, 8))
    with pytest.raises(ValueError, match=message):
        record_spikes(network, torch.zeros(shape), channels=channels)


COUNT = """<pre id=counts></pre><script>
const wait = setInterval(() => {
  if (!document.body.dataset.ready) return;
  clearInterval(wait);
  const found = [], style = getComputedStyle(document.documentElement);
  const colour = name => { const c = document.createElement('canvas').getContext('2d');
    c.fillStyle = style.getPropertyValue(name).trim(); c.fillRect(0, 0, 1, 1);
    return c.getImageData(0, 0, 1, 1).data.slice(0, 3).join(); };
  const plus = colour('--plus'), minus = colour('--minus'), slider = document.getElementById('step');
  for (let t = 1; t <= Number(slider.max); t++) {
    slider.value = t; slider.dispatchEvent(new Event('input'));
    found.push([...document.querySelectorAll('.layer canvas')].map(canvas => {
      const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
      let positive = 0, negative = 0;
      for (let i = 0; i < pixels.length; i += 4) {
        const one = [pixels[i], pixels[i + 1], pixels[i + 2]].join();
        positive += one === plus; negative += one === minus; }
      return [positive, negative]; }));
  }
  document.getElementById('counts').textContent =
    JSON.stringify([found, document.getElementById('now').textContent, document.querySelectorAll('svg').length]);
}, 20);
</script></body>"""


def test_a_browser_draws_every_spike(digit: Image.Image, tmp_path: Path, browser: str) -> None:
    """At each time step, red and blue pixels of a layer's map are its positive and negative spikes."""
    record = record_spikes(zoo.load("tspike-digits"), zoo.transforms("tspike-digits")(digit))
    names = [f"</script>{number}" for number in range(10)]
    page = write_spike_page(record, tmp_path / "page.html", title="<b>five</b>", class_names=names)
    text = page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)  # nothing to fetch
    assert text.count("</script>") == 2
    assert "<b>five</b>" not in text
    page.write_text(text.replace("</body>", COUNT))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run(
        [*command, "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    counts, now, pictures = json.loads(re.search(r'<pre id="counts">(.*?)</pre>', dom)[1])
    expected = [
        [[int((layer.spikes[t] > 0).sum()), int((layer.spikes[t] < 0).sum())] for layer in record.layers]
        for t in range(4)
    ]
    assert counts == expected
    assert now.startswith("time step 4 of 4: ")
    assert pictures == 1 + len(record.layers)


def test_show(tspike: Callable[..., Any], digit: Image.Image, tmp_path: Path) -> None:
    digit.save(tmp_path / "digit.png")
    result = tspike("show", "tspike-digits", "digit.png", "--timesteps=6")
    assert result.status is None, result.stderr
    assert result.stdout.strip() == "digit.html"
    text = (tmp_path / "digit.html").read_text()
    assert "<h1>tspike-digits sees digit.png</h1>" in text
    assert '<b id="answer">5</b>' in text
    assert json.loads(re.search(r'id="data">(.*?)</script>', text)[1])["timesteps"] == 6


def test_show_a_recording(tspike: Callable[..., Any], shared: Callable[[str], Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(shared("data/nmnist_small.zip")) as file:
        name = next(name for name in sorted(file.namelist()) if name.endswith(".bin") and "/2/" in name)
        (tmp_path / "two.bin").write_bytes(file.read(name))
    result = tspike("show", "tspike-nmnist", "two.bin", "-o", "page.html")
    assert result.status is None, result.stderr
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "page.html").read_text())[1])
    assert data["timesteps"] == len(data["input"]) == 4
    result = tspike("show", "tspike-nmnist", "two.bin", "--timesteps=2")
    assert result.status == 2
    assert "every frame is a time step" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tspike-digits", "none.png"], "none.png cannot be read as an image"),
        (
            ["tspike-nmnist", "none.png"],
            "none.png is no recording that can be read here: expected a file .aedat4, .bin",
        ),
        (["tspike-nmnist", "none.bin"], "there is no recording none.bin"),
        (["tspike-nmnist", "bad.bin"], "bad.bin cannot be read as a recording: ValueError: 7 bytes"),
        (["tspike-digits", "none.png", "--channels=0"], "--channels must be at least 1, got 0"),
    ],
)
def test_show_explains_mistakes(tspike: Callable[..., Any], tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "bad.bin").write_bytes(b"1234567")
    result = tspike("show", *words)
    assert result.status
    assert message in result.stderr
    assert not list(tmp_path.glob("*.html"))
