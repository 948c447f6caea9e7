"""Sweeps: expands a base config and a grid into named SAEs or adapters, before an experiment is validated."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from decimal import Decimal
from typing import Any

from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.text import nearest
from patchsae.pipeline.experiment.bounded_yaml import MAX_NODES, n_nodes
from patchsae.storage.errors import UserError
from patchsae.storage.keys import canonical_json

_FIELDS = ("base", "grid", "also")


def expand(raw: dict[str, Any], sections: Mapping[str, Mapping[str, type[Config]]], where: str) -> None:
    """Adds the members of each sweep in `raw` to their section, and replaces the sweep by their names.

    A member is named after its sweep and the fields that vary, in alphabetical order. Its kind decides its
    section: `sections` maps `saes` and `adapters` to their kinds, and a kind to its config. `where` names the
    file in errors. Raises UserError if a sweep is not valid.
    """
    sweeps = raw.get("sweeps")
    if sweeps is None:
        raw.pop("sweeps", None)
        return
    if not isinstance(sweeps, dict):
        raise UserError(f"{where}: `sweeps` is no mapping; write NAME: {{base: ..., grid: ...}}.")
    if not all(isinstance(raw.get(section) or {}, dict) for section in ("saes", *sections)):
        return  # The validation of the experiment says what is wrong.
    kinds = {kind: config for of_section in sections.values() for kind, config in of_section.items()}
    n_before = n_nodes(raw)
    for sweep, config in sweeps.items():
        path = f"{where}: `sweeps.{sweep}"
        n_before += _check(config, path, n_before)
        members = _members(config, kinds, path)
        section = _section_of(members, sections, path)
        entries = raw[section] = raw.get(section) or {}
        for suffix, fields in members:
            name = f"{sweep}-{suffix}"
            if name in entries:
                raise UserError(
                    f"{where}: `sweeps.{sweep}` makes `{name}` of `{section}` twice; leave one of them out."
                )
            entries[name] = fields
        sweeps[sweep] = [f"{sweep}-{suffix}" for suffix, _ in members]


def _section_of(
    members: Sequence[tuple[str, Mapping[str, Any]]],
    sections: Mapping[str, Mapping[str, type[Config]]],
    path: str,
) -> str:
    """The section of a sweep's members; `saes` if their kinds are not known, which the validation then says."""
    found = {
        section
        for _, fields in members
        for section, kinds in sections.items()
        if str(fields.get("kind")) in kinds
    }
    if len(found) > 1:
        raise UserError(f"{path}` has SAEs and adapters; write a sweep for each.")
    return found.pop() if found else "saes"


def _check(config: Any, path: str, n_before: int) -> int:
    """The number of values in all members of a sweep. `path` is the beginning of every error.

    Raises UserError if the sweep is not valid, or if the experiment, which has `n_before` values without it,
    becomes too large. Its members are counted and not made: four lists of 100 values have 100 million.
    """
    if not isinstance(config, dict):
        raise UserError(f"{path}` is no mapping; write base, grid and, if you like, also.")
    for field in config:
        if field not in _FIELDS:
            raise UserError(f"{path}.{field}` is no field of a sweep{nearest(str(field), _FIELDS)}")
    base, grid, also = config.get("base", {}), config.get("grid", {}), config.get("also", [])
    if not isinstance(base, dict) or not isinstance(grid, dict):
        raise UserError(
            f"{path}.{'grid' if isinstance(base, dict) else 'base'}` is no mapping of fields to values."
        )
    if not isinstance(also, list) or not all(isinstance(fields, dict) and fields for fields in also):
        raise UserError(
            f"{path}.also` is no list of mappings; write [{{kind: relu_l1, l1_coefficient: 1e-3}}]."
        )
    if not grid and not also:
        raise UserError(f"{path}` has no members; give `grid` a field with a list of values.")
    for field, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(
                f"{path}.grid.{field}` is {values!r}; write a list of one value or more, such as [16, 32]."
            )
    for field in [*grid, *(name for fields in also for name in fields)]:
        if not isinstance(field, str):
            raise UserError(f"{path}` varies {field!r}, which is no field; a field is a word.")
    n_points = math.prod(map(len, grid.values())) if grid else 0
    largest = sum(1 + max(map(n_nodes, values)) for values in grid.values())
    n_values = (n_points + len(also)) * (1 + n_nodes(base)) + n_points * largest + n_nodes(also)
    if n_before + n_values > MAX_NODES:
        raise UserError(
            f"{path}` has {n_points + len(also):,} members, with which the experiment has more than "
            f"{MAX_NODES:,} values; use shorter lists."
        )
    return n_values


def _members(
    config: Mapping[str, Any], kinds: Mapping[str, type[Config]], path: str
) -> list[tuple[str, dict[str, Any]]]:
    """(suffix of the name, config) of each member of a sweep that was checked."""
    base, grid, also = config.get("base", {}), config.get("grid", {}), config.get("also", [])
    varying = sorted(grid)
    points = [
        dict(zip(varying, values, strict=True)) for values in itertools.product(*(grid[f] for f in varying))
    ]
    found = []
    for section, fields in [
        *(("grid", point) for point in points if point),
        *(("also", extra) for extra in also),
    ]:
        member = deepcopy({**base, **fields})
        variant = kinds.get(str(member.get("kind")))
        for name in fields:
            if variant is not None and name not in variant.model_fields:
                raise UserError(
                    f"{path}.{section}.{name}` is no field of {member['kind']}{nearest(str(name), variant.model_fields)}"
                )
        words = [_word(name, fields[name], f"{path}.{section}.{name}`") for name in sorted(fields)]
        found.append(("-".join(words), member))
    return found


def _word(field: str, value: Any, path: str) -> str:
    """A field and its value as part of a name, such as `k16`, `lr1e-3` or, for `kind`, `topk`.

    It has no dots, since dots separate the steps of a `--set` path.
    """
    if isinstance(value, float):
        _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
        text = ("-" if value < 0 else "") + "".join(map(str, digits)) + (f"e{exponent}" if exponent else "")
    elif isinstance(value, str | int) or value is None:
        text = re.sub(r"[^a-z0-9_-]", "_", str(value).lower())
    else:
        raise UserError(f"{path} has the value {value!r}; write numbers or words.")
    return text if field == "kind" else f"{field.lower()}{text}"


def check_distinct(sweeps: Mapping[str, tuple[str, ...]], entries: Mapping[str, Any]) -> None:
    """Raises ValueError, with both names, if a member would be the same artifact as another entry.

    `entries` are all SAEs and adapters.
    """
    same: dict[str, list[str]] = {}
    for name, config in entries.items():
        same.setdefault(_identity(config), []).append(name)
    for sweep, members in sweeps.items():
        for member in members:
            for name in same[_identity(entries[member])]:
                if name != member:
                    raise ValueError(
                        f"sweeps.{sweep}: `{member}` and `{name}` are the same; leave one of them out"
                    )


def _identity(config: Any) -> str:
    """What decides which SAE or adapter a config trains."""
    return canonical_json([config.dataset, config.backbone, config.key_config()])
