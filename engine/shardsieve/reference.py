"""The reference: every setting, command, column and exit code, as one page of Markdown.

Made from the docstrings of the settings and the help of the commands, so that each is written once.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from shardsieve import errors
from shardsieve.config import Config, Section
from shardsieve.config_toml import describe
from shardsieve.data.reason import EXPLANATIONS, Reason

_HEAD = """# Reference

Written by `shardsieve reference`; a test compares this page with what it prints.
"""
_NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def reference(command: Any) -> str:
    """Returns the page.

    Args:
        command: The command line with all its verbs, as typer makes it.
    """
    parts = [_HEAD, *_settings(), *_commands(command), *_reasons(), *_exit_codes()]
    return "\n".join(parts) + "\n"


def _settings() -> Iterator[str]:
    yield "## Settings\n"
    yield (
        "In a file for `--config` as TOML tables, or one at a time as `--set SECTION.NAME=VALUE`; "
        "`shardsieve init` prints them as such a file. Later ones overrule earlier ones: defaults, "
        "file, options. An unknown name is an error.\n"
    )
    whole = Config()
    tables = [name for name in Config.model_fields if isinstance(getattr(whole, name), Section)]
    yield "### Without a section\n"
    yield from _table_of(Config, [name for name in Config.model_fields if name not in tables], "")
    for name in tables:
        section = type(getattr(whole, name))
        yield f"### `[{name}]`\n"
        yield f"{_one_line(section.__doc__)}\n"
        yield from _table_of(section, section.model_fields, f"{name}.")


def _table_of(section: type[Section], names: Iterable[str], prefix: str) -> Iterator[str]:
    meanings = describe(section)
    yield "| setting | type | default | meaning |"
    yield "|---|---|---|---|"
    for name in names:
        field = section.model_fields[name]
        yield _row(f"`{prefix}{name}`", _type(field), f"`{_value(field.default)}`", meanings[name])
    yield ""


def _type(field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([_annotation(field.annotation), *limits])


def _annotation(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_annotation(part) for part in arguments if part is not type(None))
    if origin is Annotated:
        return _annotation(arguments[0])
    if origin in (tuple, list):
        return f"list of {_annotation(arguments[0])}"
    return _NAMES[annotation]


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"


def _commands(command: Any) -> Iterator[str]:
    yield "## Commands\n"
    yield from _verbs(command, "shardsieve")


def _verbs(command: Any, name: str) -> Iterator[str]:
    for verb, below in sorted(getattr(command, "commands", {}).items()):
        if hasattr(below, "commands"):
            yield from _verbs(below, f"{name} {verb}")
        else:
            yield from _verb(below, f"{name} {verb}")


def _verb(command: Any, name: str) -> Iterator[str]:
    arguments = [_argument(parameter) for parameter in command.params if _is_argument(parameter)]
    yield f"### `{' '.join([name, *arguments])}`\n"
    for paragraph in (command.help or "").split("\n\n"):
        yield f"{_one_line(paragraph)}\n"
    if command.params:
        types_of = get_type_hints(inspect.unwrap(command.callback))
        yield "| | |\n|---|---|"
        yield from (_parameter(given, types_of[given.name]) for given in command.params)
        yield ""


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _argument(parameter: Any) -> str:
    name = f"{parameter.name.upper()}{'...' if parameter.nargs != 1 else ''}"
    return name if parameter.required else f"[{name}]"


def _parameter(parameter: Any, annotation: Any) -> str:
    text = _one_line(parameter.help)
    if _is_argument(parameter):
        return _row(f"`{_argument(parameter)}`", text)
    names = ", ".join(parameter.opts)
    if not parameter.is_flag:
        names = f"{names} {parameter.metavar or _metavar(annotation)}"
    if parameter.required:
        text = f"{text} Required."
    elif parameter.default not in (None, False) and "[default" not in text:
        text = f"{text} [default: {getattr(parameter.default, 'value', parameter.default)}]"
    return _row(f"`{names}`", text)


def _metavar(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "|".join(choice.value for choice in annotation)
    return _annotation(annotation).removeprefix("list of ").upper()


def _reasons() -> Iterator[str]:
    yield "## Reasons\n"
    yield (
        "The column `reason` of `select/scores.parquet` and `clean/manifest.parquet`. "
        "In = kept + removed + unreadable.\n"
    )
    yield "| reason | group | meaning |\n|---|---|---|"
    for reason in Reason:
        yield _row(f"`{reason.word}`", reason.group, EXPLANATIONS[reason])
    yield ""


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield "| code | error | meaning |\n|---|---|---|"
    yield _row("0", "", "done")
    raised = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.ShardsieveError)
    ]
    for error in sorted(raised[1:], key=lambda error: error.exit_code):
        yield _row(str(error.exit_code), f"`{error.__name__}`", _one_line(error.__doc__))
    yield _row("130", "", "interrupted; the same command goes on from there")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _one_line(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").strip()
