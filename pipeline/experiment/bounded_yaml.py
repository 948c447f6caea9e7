"""Reads YAML within bounds, since an experiment's file may come from others.

An alias (`*name`) repeats what an anchor (`&name`) marks. So a file of 1 kB can stand for a billion values,
which are counted here before any of them is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from patchsae.storage.errors import UserError

MAX_BYTES = 10_000_000
MAX_NODES = 100_000
"""Keys, values, lists and mappings of an experiment, with every alias and every sweep written out."""
MAX_DEPTH = 100
_MAX_BITS = 1024
"""Python refuses to print whole numbers of over 4,300 digits, which YAML can give in hexadecimal."""


class NotYaml(Exception):
    """A text is not valid YAML. The message says where and why, without a full stop."""


@dataclass
class _Open:
    """A list or mapping whose end has not been read, or a whole node: its nodes, and how deep they reach."""

    anchor: str | None
    n_nodes: int = 1
    depth: int = 1


def read(text: str, where: str) -> Any:
    """The value of a YAML 1.2 text, in which `1e-4` is a number and `on` is a word.

    No part of the value is shared, so that changing one place changes no other. Raises NotYaml if the text is
    not valid, and UserError, naming `where`, if the value is larger than the bounds above.
    """
    try:
        _check(text, where)
        return _written_out(YAML(typ="safe", pure=True).load(text))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise NotYaml(f"not valid YAML{line}: {_one_line(getattr(error, 'problem', error))}") from None
    except (ValueError, LookupError) as error:
        # Values that look like a date, or are tagged as a number, and are none.
        raise NotYaml(f"not valid YAML: a value is not of its type ({_one_line(error)})") from None


def n_nodes(value: Any) -> int:
    """The number of keys, values, lists and mappings in a value."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(n_nodes, value.values()))
    return 1 + sum(map(n_nodes, value)) if isinstance(value, list) else 1


def _one_line(problem: object) -> str:
    return " ".join(str(problem).split()).rstrip(".")


def _written_out(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _written_out(item) for key, item in value.items()}
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ValueError(f"a whole number of {value.bit_length():,} bits")
    return [_written_out(item) for item in value] if isinstance(value, list) else value


def _check(text: str, where: str) -> None:
    """Raises UserError if the text stands for too much, or for a value that contains itself."""
    anchored: dict[str, _Open] = {}
    stack = [_Open(None, 0)]
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, SequenceStartEvent | MappingStartEvent):
            stack.append(_Open(event.anchor))
            node = None
        elif isinstance(event, SequenceEndEvent | MappingEndEvent):
            node = stack.pop()
        elif isinstance(event, AliasEvent):
            if any(one.anchor == event.anchor for one in stack):
                raise UserError(
                    f"{where}: the alias `*{event.anchor}` is inside what it repeats; write it out."
                )
            node = anchored.get(event.anchor, _Open(None))
        elif isinstance(event, ScalarEvent):
            node = _Open(event.anchor)
        else:
            continue
        if node is not None:
            if node.anchor is not None:
                anchored[node.anchor] = node
            stack[-1].n_nodes += node.n_nodes
            stack[-1].depth = max(stack[-1].depth, node.depth + 1)
        if len(stack) + stack[-1].depth > MAX_DEPTH:
            raise UserError(f"{where}: is nested more than {MAX_DEPTH} levels deep; no field needs that.")
        if sum(one.n_nodes for one in stack) > MAX_NODES:
            raise UserError(
                f"{where}: has more than {MAX_NODES:,} values, with every alias written out; divide it."
            )
