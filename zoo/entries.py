"""The zoo's table: one entry per set of weights. Pure data: reading it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["ENTRIES", "ZooEntry"]


@dataclass(frozen=True)
class ZooEntry:
    """One set of weights, trained or planned.

    Attributes:
        name: What ``zoo.load`` is asked for; ``ARCHITECTURE.TAG`` works as well.
        architecture: Backbone, a name in timm's registry.
        tag: What tells it from other weights of the architecture.
        dataset: What it is trained on.
        timesteps: Number of time steps T.
        status: ``"trained"``: weights exist. ``"planned"``: only the recipe does.
        recipe: Name of the recipe that trains it: ``tspike fit --config RECIPE``.
        repo_id: ``ORG/NAME`` on the Hugging Face Hub; None where the weights come with the package, or do not exist.
        revision: 40-hex commit of that repository.
        sha256: The ``sha256`` in its ``config.json``, which covers all of its files of weights.
        size: Bytes of the float32 weights.
        license: Licence of the weights.
        metrics: Measured figures; accuracies in [0, 1] are those of the folded weights on the test set.
        measured_by: The command that gave them.
    """

    name: str
    architecture: str
    tag: str
    dataset: str
    timesteps: int
    status: Literal["trained", "planned"]
    recipe: str
    repo_id: str | None = None
    revision: str | None = None
    sha256: str | None = None
    size: int | None = None
    license: str = "apache-2.0"
    metrics: dict[str, float] = field(default_factory=dict)
    measured_by: str | None = None


ENTRIES = (
    ZooEntry(
        name="tspike-digits",
        architecture="tspike_resnet_small",
        tag="digits",
        dataset="scikit-learn digits",
        timesteps=4,
        status="trained",
        recipe="digits",
        metrics={"test/acc1": 351 / 360},
        measured_by="tspike fit --config digits",
    ),
    ZooEntry(
        name="tspike-resnet34-imagenet",
        architecture="resnet34",
        tag="imagenet",
        dataset="imagenet-1k",
        timesteps=4,
        status="planned",
        recipe="resnet34_imagenet",
    ),
)
