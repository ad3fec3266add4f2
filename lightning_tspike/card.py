"""The model card of a network's folder: what is in it and how to use it, with no figure that was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .report import FoldReport
from .ternarize import SpikingNetwork

__all__ = ["model_card"]

TEMPLATE = Path(__file__).parent / "templates" / "card.md.jinja"


def model_card(
    network: SpikingNetwork,
    *,
    version: str,
    preprocessing: Mapping[str, Any] | None = None,
    report: FoldReport | None = None,
) -> str:
    """Text of a README.md as the Hugging Face Hub reads it: metadata in YAML, then Markdown.

    Args:
        network: With a ``config``.
        version: Of lightning-tspike.
        preprocessing: As a datamodule's ``preprocessing``.
        report: What folding did.
    """
    config: Any = network.config
    data = ModelCardData(
        library_name="lightning-tspike",
        pipeline_tag="image-classification",
        tags=["spiking-neural-network", "ternary-spike"],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        network=config,
        neuron=type(next(iter(network.neurons().values()))).__name__,
        images=f"[B, {config.in_chans}, H, W] or frames [B, {config.timesteps}, {config.in_chans}, H, W]",
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        preprocessing=preprocessing,
        version=version,
        fold=str(report) if report is not None else None,
    )
    return str(card)
