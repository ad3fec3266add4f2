"""``tspike report``: one HTML page of a training run."""

from __future__ import annotations

import argparse
from pathlib import Path

from .._waiting import waiting
from .commands import Commands

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the command of this file."""
    report = commands.add(
        "report",
        _report,
        "draw what a training run has logged, as one HTML file",
        "Draw what a training run has logged: learning curves, amplitudes, membrane potentials, firing rates, energy "
        "and fold, as one HTML file that needs nothing else.",
    )
    report.add_argument("run", type=Path, help="folder of the run, with metrics.csv or TensorBoard's event files")
    report.add_argument("-o", "--output", type=Path, help="file to write; default: report.html in that folder")


def _report(options: argparse.Namespace) -> None:
    from ..analysis import write_report  # these import torch and lightning
    from ..callbacks import REPORT_SECTIONS

    with waiting(f"drawing {options.run}"):
        written = write_report(options.run, options.output, sections=REPORT_SECTIONS)
    print(written)
