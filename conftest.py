"""What examples in docstrings know by name, beside their own module: a small network, images and labels for it."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def names_of_examples() -> dict[str, Any]:
    """The names and what they are."""
    import torch
    from lightning import Trainer

    import lightning_tspike as lt

    config = lt.NetworkConfig("tspike_resnet_small", num_classes=10, timesteps=2)
    return {
        "lt": lt,
        "torch": torch,
        "Trainer": Trainer,
        "cross_entropy": torch.nn.functional.cross_entropy,
        "network": lt.models.create_network(config),
        "images": torch.randn(2, 3, 16, 16),
        "labels": torch.tensor([3, 7]),
        **{name: getattr(lt.callbacks, name) for name in lt.callbacks.__all__},
    }


@pytest.fixture(autouse=True)
def _examples(request: pytest.FixtureRequest) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        names: dict[str, Any] = request.getfixturevalue("doctest_namespace")
        for name, value in request.getfixturevalue("names_of_examples").items():
            names.setdefault(name, value)
