"""Options in groups: a dataclass of them is one parameter of a command, and one section of its help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import fields, is_dataclass
from textwrap import wrap
from typing import Annotated, Any, ClassVar, Protocol, get_args, get_type_hints

from typer.core import TyperArgument, TyperCommand, TyperOption
from typer.models import OptionInfo


class Group(Protocol):
    """A dataclass whose fields are options, ``Annotated`` for typer."""

    title: ClassVar[str]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command for typer, whose parameters that are dataclasses (:class:`Group`) are spread into their fields."""
    hints, groups, spread = get_type_hints(command, include_extras=True), dict[str, type](), list[inspect.Parameter]()
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not is_dataclass(kind):
            spread.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind))
            continue
        assert isinstance(kind, type)
        groups[name] = kind
        own, title = get_type_hints(kind, include_extras=True), vars(kind)["title"]
        for one in fields(kind):
            annotation = _titled(own[one.name], title)
            spread.append(
                inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=annotation)
            )

    def run(**given: object) -> None:
        made = {name: kind(**{one.name: given.pop(one.name) for one in fields(kind)}) for name, kind in groups.items()}
        command(**given, **made)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    vars(run)["__signature__"] = inspect.Signature(spread)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in spread}
    return run


def _titled(annotation: object, title: str) -> object:
    """An option's annotation with the section of the help that it belongs to."""
    kind, info = get_args(annotation)
    assert isinstance(info, OptionInfo)
    own = copy(info)
    own.rich_help_panel = title
    return Annotated[kind, own]


class Sections(TyperCommand):
    """A command whose help has a section for each group of options, and is whole on narrow terminals."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # of the click that typer brings
        """As click writes its two sections, of arguments and options."""
        sections = dict[str, list[tuple[str, str]]]()
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is None:
                continue
            usual = "Options" if isinstance(parameter, TyperOption) else "Arguments"
            panel = parameter.rich_help_panel if isinstance(parameter, TyperOption | TyperArgument) else None
            sections.setdefault(panel or usual, []).append(record)
        narrow = formatter.width < _NARROW
        for title, records in sections.items():
            with formatter.section(title):
                rows = [row for name, told in records for row in _broken(name, told, formatter.width - 2)]
                formatter.write_dl(rows, col_max=4 if narrow else 30)


_NARROW = 60
"""Columns below which what an option means stands beneath it, not beside it."""


def _broken(name: str, told: str, width: int) -> list[tuple[str, str]]:
    """The lines of an option whose name and choices take more than a line, the last with what it means."""
    parts = wrap(name.replace("|", "| "), width, subsequent_indent="  ", break_on_hyphens=False)
    lines = [part.replace("| ", "|") for part in parts]
    return [*((line, "") for line in lines[:-1]), (lines[-1], told)]
