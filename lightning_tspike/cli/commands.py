"""The tree of commands: each has a parser, the function that runs it, and a line in ``tspike --help``."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

__all__ = [
    "Commands", "Parser", "check_device", "check_json", "completes", "refuse", "takes_json", "takes_network",
    "write_json",
]  # fmt: skip

Run = Callable[[argparse.Namespace], None]


class Parser(argparse.ArgumentParser):
    """A parser in which shells complete paths with files."""

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse has it."""
        action = super().add_argument(*names, **options)
        if options.get("type") is Path:
            completes("files", action)
        return action


def completes(what: Literal["files", "networks", "recipes"], action: argparse.Action) -> None:
    """Let shells complete an argument; ``completion.py`` has how."""
    action.complete = dict.fromkeys(("bash", "zsh"), f"_tspike_{what}")  # type: ignore[attr-defined]


class _Command(NamedTuple):
    parser: argparse.ArgumentParser
    run: Run | None = None  # a group has none
    takes_more: bool = False


class Commands:
    """The commands that a parser takes as its next word; some are groups with commands of their own, such as ``zoo``.

    Args:
        parser: Their parser, whose help lists them.
        hint: What the help ends with.
    """

    def __init__(self, parser: argparse.ArgumentParser, hint: str = "") -> None:
        self._parser, self._hint = parser, hint
        # one list in the help, that of every command and not that of the next word alone
        self._parsers = parser.add_subparsers(metavar="COMMAND", prog=parser.prog, help=argparse.SUPPRESS)
        parser.usage = f"{parser.prog} COMMAND ..."
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.set_defaults(command=_Command(parser))
        self._lines: dict[str, str] = {}
        self._groups: dict[str, Commands] = {}

    def add(
        self,
        name: str,
        run: Run,
        line: str,
        description: str | None = None,
        *,
        takes_more: bool = False,
        add_help: bool = True,
    ) -> argparse.ArgumentParser:
        """A command.

        Args:
            name: The word.
            run: Gets what was parsed, all words of the command line as ``words``, this parser as ``command.parser``.
            line: What it does, in a line.
            description: The same at length, for its own ``--help``.
            takes_more: Words that its parser does not know go to ``run``, as ``more``; else they are refused.
            add_help: Whether it has ``--help``; what another parser explains has none.

        Returns:
            Its parser, for its arguments.
        """
        self._lines[name] = line
        # the beginning of an option that passes for the option today may mean another one tomorrow
        parser = self._parsers.add_parser(
            name,
            help=line,
            description=description or f"{line[0].upper()}{line[1:]}.",
            allow_abbrev=False,
            add_help=add_help,
        )
        parser.set_defaults(command=_Command(parser, run, takes_more))
        return parser

    def group(self, name: str, description: str) -> Commands:
        """A word that commands follow."""
        self._groups[name] = Commands(
            self._parsers.add_parser(name, help=description, description=description, allow_abbrev=False)
        )
        return self._groups[name]

    def parser_of(self, name: str) -> argparse.ArgumentParser:
        """The parser of a command."""
        return self._parsers.choices[name]

    def open_parser(self) -> argparse.ArgumentParser:
        """The parser of all commands, where whoever reads it finds them; the help lists them elsewhere."""
        self._parsers.help = None
        for group in self._groups.values():
            group.open_parser()
        return self._parser

    def lines(self) -> Iterator[tuple[str, str]]:
        """Words and line of every command, groups taken apart."""
        for name in self._names():
            if name in self._groups:
                yield from ((f"{name} {command}", line) for command, line in self._groups[name].lines())
            else:
                yield name, self._lines[name]

    def run(self, words: Sequence[str]) -> None:
        """Run what a command line asks for; ends the process with status 2 where it is wrong, and 0 after help."""
        self._refuse_unknown(words)
        self._list_in_help()
        options, more = self._parser.parse_known_args(words)
        command: _Command = options.command
        if more and not command.takes_more:
            command.parser.error(f"unrecognized arguments: {' '.join(more)}")
        if command.run is None:
            command.parser.error(f"{words[-1]} needs a command")
        options.words, options.more, options.commands = list(words), more, self
        command.run(options)

    def _list_in_help(self) -> None:
        listed = [f"  {words:<19}  {line}" for words, line in self.lines()]
        self._parser.epilog = "\n".join(["commands:", *listed, *(["", self._hint] if self._hint else [])])
        for group in self._groups.values():
            group._list_in_help()

    def _names(self) -> Sequence[str]:
        return list(self._parsers.choices)

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        """Refuse a word that is no command, with the one that was meant."""
        word = words[0] if words else ""
        if not word or word.startswith("-"):
            return
        if word not in self._names():
            close = difflib.get_close_matches(word, self._names(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(self._names())}"
            refuse(self._parser.prog, f"there is no command {word!r}; {hint}")
        if word in self._groups:
            self._groups[word]._refuse_unknown(words[1:])


def takes_network(parser: argparse.ArgumentParser) -> None:
    """Let a command's first word say which network, as ``options.network``."""
    network = parser.add_argument(
        "network", metavar="NETWORK", help="entry of the zoo, ORG/NAME[@REVISION] on the Hub, folder or checkpoint"
    )
    completes("networks", network)


def takes_json(parser: argparse.ArgumentParser) -> None:
    """Let a command write what it says to a file as well, ``options.json``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file, too")


def check_json(options: argparse.Namespace) -> None:
    """Refuse a file that cannot be written, before anything is measured."""
    if options.json is not None and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
        raise ValueError(f"--json {options.json} cannot be written: name a file in a folder that exists")


def write_json(options: argparse.Namespace, content: Mapping[str, Any]) -> None:
    """Write the file, whole, where one is asked for, and say so."""
    if options.json is None:
        return
    from ..files.atomic import whole_file

    with whole_file(options.json) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")
    print(f"written: {options.json}")


def check_device(options: argparse.Namespace) -> None:
    """Refuse a GPU where there is none."""
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        options.command.parser.error("--device cuda: torch sees no GPU here; leave it out to measure on the CPU")


def refuse(command: str, text: str) -> NoReturn:
    """End the process with one line on stderr and status 2: the command line is wrong."""
    print(f"{command}: {text}", file=sys.stderr)
    sys.exit(2)
