"""Tables of plain text."""

from __future__ import annotations

import io

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

__all__ = ["new_table", "table_text"]


def new_table(*columns: str) -> Table:
    """A table whose columns are as wide as what is in them."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def table_text(*tables: Table) -> str:
    """Tables as plain text, as wide as they need to be: names are there to be copied."""
    file = io.StringIO()
    console = Console(file=file, width=1000, no_color=True)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
