"""The model card of a network's folder: what is in it and how to use it, with no figure that was not measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..analysis.energy import EnergyReport
from ..folding.report import FoldReport
from ..network.spiking_network import SpikingNetwork
from .catalog import over_seeds
from .manifest import Manifest

__all__ = ["model_card"]

TEMPLATE = Path(__file__).parent / "templates" / "card.md.jinja"


def model_card(
    network: SpikingNetwork,
    manifest: Manifest,
    *,
    report: FoldReport | None = None,
    energy: EnergyReport | None = None,
    name: str | None = None,
    files: Sequence[str] = (),
    license: str | None = None,
    recipe: str | None = None,
) -> str:
    """Text of a README.md as the Hugging Face Hub reads it: metadata in YAML, then Markdown.

    Args:
        network: With a ``config``.
        manifest: Contents of ``config.json``. Without results in it the card says that nothing was measured.
        report: What folding did.
        energy: Operations and energy in detail, where there is more than the results have.
        name: What ``zoo.load`` will find it by.
        files: What else is in the folder.
        license: Of the weights, as the Hub calls it.
        recipe: Name of the recipe that trained it.
    """
    shape: Any = network.config
    spec = manifest.preprocessing
    results, evaluated = manifest.results, None
    if results is not None:
        evaluated = [
            EvalResult(
                task_type="image-classification",
                dataset_type=re.sub("[^a-z0-9]+", "-", results.dataset.partition("(")[0].lower()).strip("-"),
                dataset_name=results.dataset,
                dataset_split="test",
                metric_type="accuracy",
                metric_name=f"top-1 accuracy, {precision} weights",
                metric_value=round(accuracy, 6),
            )
            for precision, accuracy in results.top1.items()
        ]
    neurons = list(network.neurons().values())
    data = ModelCardData(
        license=license,
        library_name="lightning-tspike",
        pipeline_tag="image-classification",
        tags=["spiking-neural-network", "ternary-spike"] if neurons else None,
        model_name=(name or shape.backbone).rpartition("/")[2],
        eval_results=evaluated,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        network=shape,
        neuron=type(neurons[0]).__name__ if neurons else None,
        images=f"[B, {shape.in_chans}, H, W] or frames [B, {shape.timesteps}, {shape.in_chans}, H, W]",
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        manifest=manifest,
        input=spec if spec is not None and spec.is_complete else None,
        source=name or "PATH_OF_THIS_FOLDER",
        files=files,
        fold=str(report) if report is not None else None,
        energy=energy,
        results=results,
        over_seeds=over_seeds(results.to_dict()) if results else None,
        recipe=recipe,
    )
    return str(card)
