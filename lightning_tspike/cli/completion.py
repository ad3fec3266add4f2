"""``tspike completion SHELL``: what a shell completes after ``tspike``, by shtab."""

from __future__ import annotations

import argparse

from .. import zoo
from ..store.catalog import recipe_files
from .commands import Commands, completes

__all__ = ["add_commands"]

_FUNCTIONS = {
    "bash": """
_tspike_files() {{ compgen -f -- "$1"; }}
_tspike_networks() {{ compgen -W "{networks}" -- "$1"; compgen -f -- "$1"; }}
_tspike_recipes() {{ compgen -W "{recipes}" -- "$1"; compgen -f -- "$1"; }}
""",
    "zsh": """
_tspike_files() {{ _files; }}
_tspike_networks() {{ compadd {networks}; _files; }}
_tspike_recipes() {{ compadd {recipes}; _files; }}
""",
}


def add_commands(commands: Commands) -> None:
    """Add the command of this file."""
    completion = commands.add(
        "completion",
        _print,
        "print a script that completes commands in a shell",
        "Prints a script that completes commands, options, recipes, entries of the zoo and files. For bash: "
        "tspike completion bash > ~/.local/share/bash-completion/completions/tspike. For zsh: "
        "tspike completion zsh > _tspike in a folder of $fpath.",
    )
    completion.add_argument("shell", choices=("bash", "zsh"))


def _print(options: argparse.Namespace) -> None:
    import shtab

    from .training import options_of_commands  # imports torch and lightning

    commands: Commands = options.commands
    for name, known in options_of_commands().items():
        for option in known:
            action = commands.parser_of(name).add_argument(option)
            if option == "--config":
                completes("recipes", action)
    words = {"networks": " ".join(zoo.list(status="trained")), "recipes": " ".join(recipe_files())}
    functions = _FUNCTIONS[options.shell].format(**words)
    print(shtab.complete(commands.open_parser(), options.shell, preamble=functions))
