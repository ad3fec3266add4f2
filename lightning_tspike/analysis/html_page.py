"""What the HTML pages here have in common: one self-contained file from a template, its pictures within."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from ..files.atomic import whole_file

__all__ = ["data_uri", "write_page"]

TEMPLATES = Path(__file__).parent / "templates"


def write_page(output: Path, template: str, **facts: Any) -> Path:
    """Write a page, whole or not at all; what the template is given is escaped.

    Args:
        output: The file.
        template: Name of a file in ``templates/``.
        facts: What it shows.

    Raises:
        OSError: It cannot be written.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    page = environment.get_template(template).render(**facts)
    with whole_file(output, foreseeable=False) as stream:
        stream.write(page.encode(errors="replace"))
    return output


def data_uri(kind: str, content: bytes) -> str:
    """The content of a file of that MIME type as an address, so that a page needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
