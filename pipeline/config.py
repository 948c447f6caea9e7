"""Configs: frozen, strict pydantic models in which every field that is dumped changes the output.

Fields declared with `Location`, `Check` or a `...Name` type are not dumped and so not hashed: where bytes lie is
covered by a fingerprint, a check changes no result, and names inside an experiment are only names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from storage.errors import UserError

DatasetName = Annotated[str, Field(exclude=True, json_schema_extra={"names": "datasets"})]
# The whole union is annotated: pydantic ignores `exclude` on one member of a union.
OptionalDatasetName = Annotated[str | None, Field(exclude=True, json_schema_extra={"names": "datasets"})]
BackboneName = Annotated[str, Field(exclude=True, json_schema_extra={"names": "backbones"})]
SaeName = Annotated[str, Field(exclude=True, json_schema_extra={"names": "saes"})]
EvaluationName = Annotated[str, Field(exclude=True, json_schema_extra={"names": "evaluations"})]
Location = Annotated[str, Field(exclude=True)]
OptionalLocation = Annotated[str | None, Field(exclude=True)]


class Config(BaseModel):
    """Base of every config. Unknown fields, NaN and assignment are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_fields(cls, values: Any) -> Any:
        """As `extra="forbid"` would, but naming the nearest field."""
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(f"`{name}` is no field of it{nearest(str(name), cls.model_fields)}")
        return values

    def key_config(self) -> dict[str, Any]:
        """What goes into a key."""
        return self.model_dump(mode="json")


def nearest(word: str, known: Iterable[str]) -> str:
    """A remedy for a misspelt word: `; did you mean X?`, or the list of what there is."""
    options = sorted(known)
    matches = difflib.get_close_matches(word, options, n=3, cutoff=0.5)
    if matches:
        return "; did you mean " + " or ".join(f"`{match}`" for match in matches) + "?"
    shown = ", ".join(f"`{option}`" for option in options[:20]) or "none"
    return f"; there is {shown}."


def explain(error: ValidationError, where: str) -> UserError:
    """The first fault of an experiment as one sentence: the field, the value, the remedy."""
    fault = error.errors()[0]
    steps = [str(step) for step in fault["loc"]]
    # Behind `saes.relu` pydantic adds the variant's kind, which the user wrote elsewhere.
    path = ".".join(steps[:2] + steps[3:]) or "the experiment"
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
    return UserError(f"{where}: `{path}`{shown}: {message}{'' if message.endswith('?') else '.'}")
