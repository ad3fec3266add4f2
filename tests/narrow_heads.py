"""VGGs with a narrow head: the full one takes nearly all of the time, and nothing new is tested by it."""

from __future__ import annotations

NARROW_HEAD: dict[str, object] = {"mlp_ratio": 0.02}


def narrow_head(backbone: str) -> dict[str, object]:
    """The ``backbone_kwargs`` of a timm model: of a VGG those of a narrow head, of others none."""
    return NARROW_HEAD if backbone.startswith("vgg") else {}
