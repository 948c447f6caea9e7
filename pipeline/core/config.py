"""The base class of every config, and the annotations that say which fields are part of an artifact's key.

A field is hashed into the key unless its annotation says otherwise. `Annotated[T, Unhashed(...)]` keeps a
field out of the key. `Annotated[T, HashedUnless(value)]` keeps a field out of the key while it has that value.
`Annotated[C, INLINE]` hashes the fields of a nested config as if they were fields of its owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from patchsae.pipeline.core.text import nearest
from patchsae.storage.errors import UserError


@dataclass(frozen=True)
class Unhashed:
    """Marks a field that is not part of a key. `why` says why the key need not contain it."""

    why: str


@dataclass(frozen=True)
class NameIn(Unhashed):
    """Marks a field whose value is the name of an entry in `section` of the experiment, or in the section `or_in`."""

    section: str = ""
    or_in: str | None = None

    @property
    def sections(self) -> tuple[str, ...]:
        return (self.section,) if self.or_in is None else (self.section, self.or_in)


@dataclass(frozen=True)
class AlsoNames:
    """Marks a field that takes one of these names in place of the value that the name stands for."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class PathIn(Unhashed):
    """Marks a field whose value is the path of a file or folder, which is absolute once an experiment is read."""


@dataclass(frozen=True)
class HashedUnless:
    """Marks a field that a later version of the program added.

    `value` is the value at which the field changes nothing: what the versions without the field did. With it
    the field is left out of the key, so that artifacts of those versions keep their keys. With any other value
    the field is hashed.
    """

    value: Any


INLINE = "inline"
"""Marks a nested config whose fields are hashed as if they were fields of its owner."""

_A_NAME = "what it names is an input of the stage, and so in its key"
DatasetName = Annotated[str, NameIn(_A_NAME, "datasets")]
OptionalDatasetName = Annotated[str | None, NameIn(_A_NAME, "datasets")]
BackboneName = Annotated[str, NameIn(_A_NAME, "backbones", "adapters")]
OptionalBackboneName = Annotated[str | None, NameIn(_A_NAME, "backbones", "adapters")]
PlainBackboneName = Annotated[str, NameIn(_A_NAME, "backbones")]
AdapterName = Annotated[str, NameIn(_A_NAME, "adapters")]
SaeName = Annotated[str, NameIn(_A_NAME, "saes")]
EvaluationNames = Annotated[str | tuple[str, ...], NameIn(_A_NAME, "evaluations")]
EvaluationName = Annotated[str, NameIn(_A_NAME, "evaluations")]
_A_LOCATION = "what lies there is covered by a digest"
Location = Annotated[str, PathIn(_A_LOCATION)]
OptionalLocation = Annotated[str | None, PathIn(_A_LOCATION)]


class Config(BaseModel):
    """Base of every config. It refuses unknown fields, NaN and infinity, and assignment to a field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    removed: ClassVar[dict[str, str]] = {}
    """Name of a field that earlier versions had -> what to write instead."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_fields(cls, values: Any) -> Any:
        """Refuses unknown fields as `extra="forbid"` does, but the message names the nearest known field."""
        for name in values if isinstance(values, dict) else ():
            if name in cls.removed:
                raise ValueError(f"`{name}` is no field any more: {cls.removed[name]}")
            if name not in cls.model_fields:
                raise ValueError(f"`{name}` is no field of it{nearest(str(name), cls.model_fields)}")
        return values

    def key_config(self) -> dict[str, Any]:
        """The fields that go into a key, as JSON values."""
        hashed: dict[str, Any] = {}
        dumped: dict[str, Any] | None = None
        for name, field in type(self).model_fields.items():
            if any(isinstance(mark, Unhashed) for mark in field.metadata):
                continue
            value = getattr(self, name)
            if any(isinstance(mark, HashedUnless) and mark.value == value for mark in field.metadata):
                continue
            if not isinstance(value, Config):
                dumped = dumped or self.model_dump(mode="json")
                hashed[name] = dumped[name]
            elif INLINE in field.metadata:
                hashed |= value.key_config()
            else:
                hashed[name] = value.key_config()
        return hashed

    @classmethod
    def path_fields(cls) -> set[str]:
        """The fields that hold the path of a file or folder."""
        return {
            name
            for name, field in cls.model_fields.items()
            if any(isinstance(mark, PathIn) for mark in field.metadata)
        }

    @classmethod
    def names_in(cls) -> dict[str, tuple[str, ...]]:
        """The fields that name an entry of the experiment: field -> the sections that entry may be in."""
        return {
            name: mark.sections
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, NameIn)
        }


def explain(error: ValidationError, where: str) -> UserError:
    """The first fault pydantic found, as one sentence: the field, its value and the remedy.

    `where` names the experiment's file.
    """
    fault = error.errors()[0]
    steps = [str(step) for step in fault["loc"]]
    # After `saes.relu` pydantic inserts the kind of the config as a third step. It is dropped, since the
    # user's file has no such level.
    path = ".".join(steps[:2] + steps[3:])
    kind = fault["type"]
    if kind == "missing":
        return UserError(f"{where}: `{path}` is missing; give it a value.")
    if kind == "union_tag_not_found":
        return UserError(f"{where}: `{path}.kind` is missing; it says which variant this is.")
    if kind == "union_tag_invalid":
        known = [tag.strip().strip("'") for tag in str(fault["ctx"]["expected_tags"]).split(",")]
        tag = str(fault["ctx"]["tag"])
        return UserError(f"{where}: `{path}.kind` is `{tag}`, which is no kind{nearest(tag, known)}")
    value = fault.get("input")
    shown = f" is {value!r}" if isinstance(value, str | int | float | bool) else ""
    message = fault["msg"].removeprefix("Value error, ").rstrip(".")
    field = f"`{path}`{shown}: " if path else ""
    return UserError(f"{where}: {field}{message}{'' if message.endswith(('?', '.')) else '.'}")
