"""What can be written in an experiment file: every kind with its fields, as the configs in the code have them.

`patchsae kinds` and `docs/kinds.md` show it. The sentence of a field is the string below it in the code.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo

from patchsae.pipeline.adapters.adapter import AdapterConfig
from patchsae.pipeline.backbones.backbone import BackboneConfig, ExtractConfig
from patchsae.pipeline.classification.classifier import Prompts
from patchsae.pipeline.core.config import AlsoNames, Config, NameIn, Unhashed
from patchsae.pipeline.core.stage import Section
from patchsae.pipeline.evaluations.evaluation import EvaluationConfig
from patchsae.pipeline.experiment.kinds import KINDS
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.training.objective import TrainedSaeConfig

BASES: dict[Section, type[Config]] = {
    "datasets": DatasetConfig,
    "backbones": BackboneConfig,
    "adapters": AdapterConfig,
    "saes": TrainedSaeConfig,
    "evaluations": EvaluationConfig,
}
"""Section -> the config whose fields its kinds have in common."""
SHARED: dict[str, type[Config]] = {"extract": ExtractConfig, "prompts": Prompts}
"""Name of a field that holds settings of its own -> their config."""
SETTINGS = "settings"
"""The type of such a field."""


@dataclass(frozen=True)
class Described:
    """A field as somebody who writes YAML thinks of it. Values and words of the file stand in backticks."""

    name: str
    type: str
    default: str
    meaning: str


def kinds_named(word: str) -> dict[Section, type[Config]]:
    """The kinds called `word`, by their sections; there may be several."""
    return {section: kinds[word] for section, kinds in KINDS.items() if word in kinds}


def described(config: type[Config], without: type[Config] | None = None) -> list[Described]:
    """The fields of a config; those it has in common with `without` are left out."""
    sentences = _sentences_of(config)
    shared = without.model_fields if without is not None else {}
    return [
        Described(name, _type_of(field), _default(field), _with_marks(field, sentences.get(name, "")))
        for name, field in config.model_fields.items()
        if name != "kind" and not (name in shared and field.default == shared[name].default)
    ]


def purpose(config: type[Config]) -> str:
    """The docstring of a config, on one line."""
    return re.sub(r"\n\s+", " ", inspect.getdoc(config) or "").replace("\n", " ")


def _sentences_of(config: type[Config]) -> dict[str, str]:
    """The string below each field, of the class and those it is made from; a subclass has the last word."""
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if not (issubclass(owner, Config) and owner is not Config):
            continue
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _type_of(field: FieldInfo) -> str:
    """The type of a field, with the names that it takes in place of a value."""
    names = [f"`{name}`" for mark in field.metadata if isinstance(mark, AlsoNames) for name in mark.names]
    *others, last = [_type(field.annotation), *names]
    return f"{', '.join(others)} or {last}" if others else last


def _type(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        *others, last = (f"`{value}`" for value in arguments)
        return f"{', '.join(others)} or {last}" if others else last
    if origin in (typing.Union, types.UnionType):
        *others, last = map(_type, arguments)
        return f"{', '.join(others)}, or {last}"
    if origin is tuple:
        one = _type(arguments[0])
        return f"list of ({one})" if "or " in one else f"list of {one}"
    if origin is dict:
        return "mapping"
    if kind is type(None):
        return "null"
    if isinstance(kind, type) and issubclass(kind, Config):
        return SETTINGS
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(kind, str(kind))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    # Settings of another config, which are made anew where they depend on more than constants.
    if field.default_factory is not None or isinstance(field.default, Config):
        return "defaults"
    if isinstance(field.default, tuple):
        return "`[" + ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in field.default) + "]`"
    if field.default is None or isinstance(field.default, bool):
        return f"`{'null' if field.default is None else str(field.default).lower()}`"
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{field.default}`"


def _with_marks(field: FieldInfo, sentence: str) -> str:
    """What a field means, and whether it is part of a key."""
    for mark in field.metadata:
        if isinstance(mark, NameIn):
            sections = " or ".join(f"`{section}`" for section in mark.sections)
            return f"Names an entry of {sections}. {sentence}".strip()
        if isinstance(mark, Unhashed):
            return f"{sentence} Not in a key: {mark.why}.".strip()
    return sentence
