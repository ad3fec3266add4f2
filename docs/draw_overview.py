"""Draws docs/overview.svg, one neuron before and after folding: ``python docs/draw_overview.py``."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib import rcParams

from lightning_tspike.functional import membrane_potential, ternary_lif

STEPS, AMPLITUDE, GAUGE_IN, THRESHOLD = 16, 0.9, 1.6, 0.5
RED, BLUE, GREY = "#c0392b", "#2e6fb7", "#8a8f98"


def main() -> None:
    """Run one neuron on a random current, with its own numbers and with the folded ones."""
    rcParams["svg.hashsalt"] = "overview"  # the same file every time
    current = torch.randn(STEPS, 1, generator=torch.Generator().manual_seed(11), dtype=torch.float64) * 0.7
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.0), sharex=True, layout="constrained")
    amplitudes = torch.tensor([AMPLITUDE, 1.0], dtype=torch.float64)
    drawn = [
        (panels[0], current, amplitudes[0], THRESHOLD, "training: the layer emits $a\\cdot s$", "$a$"),
        (panels[1], current / GAUGE_IN, amplitudes[1], THRESHOLD / GAUGE_IN, "folded: plain $-1,\\ 0,\\ +1$", "1"),
    ]
    spikes = []
    for panel, x, amplitude, threshold, title, name in drawn:
        u = membrane_potential(x, STEPS, threshold=threshold)[:, 0]
        o = ternary_lif(x, STEPS, amplitude, threshold=threshold)[:, 0]
        spikes.append(o.sign())
        steps = torch.arange(1, STEPS + 1)
        panel.axhspan(-threshold, threshold, color=GREY, alpha=0.15, lw=0)
        panel.plot(steps, u, color=GREY, marker=".", lw=1.2, label="membrane potential $u$")
        for sign, colour in ((1, RED), (-1, BLUE)):
            at = steps[o.sign() == sign]
            panel.vlines(at, 0, sign * amplitude, color=colour, lw=3)
        panel.axhline(0, color="black", lw=0.6)
        panel.set_title(title, fontsize=11)
        panel.set_yticks([-amplitude, -threshold, 0, threshold, amplitude])
        theta = "\\theta" if name == "$a$" else "\\theta/g"
        panel.set_yticklabels([f"-{name}", f"$-{theta}$", "0", f"${theta}$", name])
        panel.set_xlabel("time step")
        panel.spines[["top", "right"]].set_visible(False)
    assert torch.equal(*spikes)  # the picture's point
    panels[0].legend(frameon=False, fontsize=8, loc="upper right")
    figure.savefig(Path(__file__).with_name("overview.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
