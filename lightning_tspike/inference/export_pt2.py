"""PyTorch's own files for exported programs: ``torch.export.load(file).module()`` runs them, without this package."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

__all__ = ["FACTS", "load_pt2", "to_pt2"]

FACTS = "facts.json"
"""Name of the metadata within a file, as ``torch.export.load(file, extra_files={"facts.json": ""})`` reads it."""


def to_pt2(program: ExportedProgram, facts: Mapping[str, Any]) -> bytes:
    """The contents of a file.

    Args:
        program: What is written.
        facts: Metadata, written as JSON.
    """
    program.example_inputs = None  # with the memories of neurons they can be larger than the weights
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={FACTS: json.dumps(facts)})
    return file.getvalue()


def load_pt2(contents: bytes) -> Any:
    """The module in a file."""
    return torch.export.load(io.BytesIO(contents)).module()
