"""The command ``tspike``: puts the groups of commands together, each from a file of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .. import __version__
from . import bench, completion, data, doctor, export, fit, networks, report, show, zoo
from .commands import Commands, Parser
from .user_errors import explained

__all__ = ["commands", "main"]

_GROUPS = (fit, doctor, networks, show, bench, export, data, report, completion, zoo)
"""In the order of the help. Nothing slow is imported before a command runs."""


def main(args: Sequence[str] | None = None) -> None:
    """Entry point; ``tspike --help`` lists the commands.

    Mistakes end with one line on stderr: status 2 where the command line is wrong, otherwise 1.

    Args:
        args: The words after ``tspike``; by default those of the process.
    """
    words = list(sys.argv[1:] if args is None else args)
    if words[:1] in ([], ["help"]):
        words = [*words[1:], "--help"]
    with explained():
        if fit.is_for_lightning(words):
            fit.run_lightning(words)
        else:
            commands().run(words)


def commands() -> Commands:
    """The tree of commands."""
    parser = Parser(
        prog="tspike",
        description="Train ternary-spike networks, fold them, and use the zoo of trained ones.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lightning-tspike {__version__}")
    tree = Commands(parser, hint="tspike COMMAND --help lists its options. To begin with: tspike fit --config digits")
    for group in _GROUPS:
        group.add_commands(tree)
    return tree
