"""A class that takes the options of several dataclasses, flat: each option is declared and documented once, there."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, get_type_hints

from torch import nn

__all__ = ["options_of", "save_options", "takes"]

_Class = TypeVar("_Class", bound=type)


def takes(*kinds: type, **in_files: Any) -> Callable[[_Class], _Class]:
    """Give a class whose ``__init__`` ends with ``**options`` the signature and the docstring of what they may be.

    So ``help``, tab completion and LightningCLI (its ``--help`` and ``--print_config``) show every option with its
    type, its default and its meaning. The line ``options:`` in the docstring is replaced by theirs.

    Args:
        kinds: Dataclasses with an ``Attributes:`` section. What the class names itself is left out.
        in_files: Types of the options that in Python may be objects, and in recipes and on the command line are names
            alone: there, the path of an object would import code.
    """

    def dress(cls: _Class) -> _Class:
        init: Any = cls.__init__  # type: ignore[misc]
        signature = inspect.signature(init)
        own = [
            p.replace(annotation=in_files.get(p.name, p.annotation))
            for p in signature.parameters.values()
            if p.kind is not p.VAR_KEYWORD
        ]
        more = {
            field.name: inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_default(field),
                annotation=in_files.get(field.name, hints[field.name]),
            )
            for kind in kinds
            for hints in [get_type_hints(kind)]
            for field in dataclasses.fields(kind)
            if field.name not in signature.parameters
        }
        init.__annotations__ = {**init.__annotations__, **in_files}
        init.__signature__ = signature.replace(parameters=[*own, *more.values()])
        lines = [line for kind in kinds for name, line in _documented(kind) if name in more]
        indented = textwrap.indent("\n".join(lines), " " * 8)
        cls.__doc__ = "\n".join(
            indented if line.strip().startswith("options:") else line for line in (cls.__doc__ or "").split("\n")
        )
        return cls

    return dress


def options_of(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Take the options that ``kind`` has out of ``options``."""
    return {field.name: options.pop(field.name) for field in dataclasses.fields(kind) if field.name in options}


def save_options(module: Any, options: Mapping[str, Any], leave_out: Collection[str] = ()) -> None:
    """Have Lightning save the options of a module or datamodule, and before them those of a subclass.

    The constructor of ``module`` calls that of its base by name, not by ``super()``: by that, ``save_hyperparameters``
    tells frames in which every option is a local variable.

    Args:
        module: It is being made.
        options: By name.
        leave_out: Names that are not saved.
    """
    module.save_hyperparameters(ignore=list(leave_out))
    for name in [name for name, value in module.hparams.items() if isinstance(value, nn.Module)]:
        del module.hparams[name]  # files hold no code
    module.save_hyperparameters({name: value for name, value in options.items() if name not in leave_out})


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _documented(kind: type) -> list[tuple[str, str]]:
    """Name and text of each entry in the ``Attributes:`` sections of a dataclass and what it inherits from."""
    found: dict[str, str] = {}
    for base in kind.__mro__:
        name = ""  # of the entry that the lines belong to; what a subclass says goes before
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        section = text.partition("Attributes:\n")[2].partition("\n\n")[0]
        for line in textwrap.dedent(section).split("\n"):
            if not line.startswith(" "):
                name = line.partition(":")[0]
                name = "" if name in found else name
            if name:
                found[name] = f"{found[name]}\n{line}" if name in found else line
    return list(found.items())
