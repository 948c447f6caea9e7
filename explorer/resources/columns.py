"""Columns of tables with a row per latent: their sentences, conditions (`where`), order (`sort`) and pages of rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import polars as pl

from patchsae.pipeline.core.text import nearest
from patchsae.storage.errors import UserError

_CONDITION = re.compile(
    r"\s*(?P<column>[^<>=!~]+?)\s*(?P<op><=|>=|!=|<|>|=|~)\s*(?P<value>.*?)\s*", re.DOTALL
)
_MOST_ROWS = 1000
_MOST_CONDITIONS = 50


def page(frame: pl.DataFrame, arguments: Mapping[str, str], sort: str | None = None) -> dict[str, Any]:
    """The rows that `where` keeps, in the order of `sort`, from `offset` on, at most `limit`.

    Raises UserError for a condition, column or number that is wrong.
    """
    chosen = frame.filter(where(frame, arguments.get("where", "")))
    order = arguments.get("sort") or sort
    if order:
        name = order.removeprefix("-")
        _check(frame, name, "sort")
        key = pl.col(name).fill_nan(None) if frame.schema[name].is_float() else pl.col(name)
        chosen = chosen.sort(key, descending=order.startswith("-"), nulls_last=True, maintain_order=True)
    wanted = [one for one in arguments.get("columns", "").split(",") if one]
    for name in wanted:
        _check(frame, name, "columns")
    if wanted:
        first = frame.columns[0]
        chosen_columns = [first, *(one for one in dict.fromkeys(wanted) if one != first)]
        chosen = chosen.select(chosen_columns)
    offset = number(arguments, "offset", 0, 10**9)
    limit = number(arguments, "limit", 100, _MOST_ROWS)
    return {
        "n_latents": len(frame),
        "n_matched": len(chosen),
        "columns": chosen.columns,
        "rows": chosen.slice(offset, limit).rows(),
    }


def number(arguments: Mapping[str, str], name: str, default: int, most: int) -> int:
    """A whole number among the arguments, at most `most`. Raises UserError for anything else."""
    text = arguments.get(name)
    if text is None or text == "":
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise UserError(f"{name}={text[:100]}: is no whole number; write one, such as {default}.")
    return min(int(text), most)


def where(frame: pl.DataFrame, text: str) -> pl.Expr:
    """The conditions of `where` as one expression. Raises UserError for one that cannot be read."""
    found = pl.lit(True)
    conditions = [one for one in text.split(";") if one.strip()]
    if len(conditions) > _MOST_CONDITIONS:
        raise UserError(f"where: has {len(conditions)} conditions; at most {_MOST_CONDITIONS} are read.")
    for condition in conditions:
        found = found & _condition(frame, condition)
    return found


def _condition(frame: pl.DataFrame, text: str) -> pl.Expr:
    parts = _CONDITION.fullmatch(text)
    if parts is None:
        raise UserError(
            f"where: `{text.strip()[:200]}` is no condition; write `column < value`, with < <= > >= = != or ~."
        )
    name, op, value = parts["column"], parts["op"], parts["value"]
    _check(frame, name, "where")
    column, kind = pl.col(name), frame.schema[name]
    if value == "null":
        if op not in ("=", "!="):
            raise UserError(f"where: `{text.strip()[:200]}` compares with null; use = or !=.")
        missing = column.is_null() | (column.is_nan() if kind.is_float() else False)
        return missing if op == "=" else ~missing
    if op == "~":
        if kind.is_numeric() or kind == pl.Boolean:
            raise UserError(f"where: `{name}` is no text, which ~ looks into; write = or another comparison.")
        return column.cast(pl.String).str.to_lowercase().str.contains(value.lower(), literal=True)
    known = _value(kind, name, value)
    compared = {
        "<": column < known,
        "<=": column <= known,
        ">": column > known,
        ">=": column >= known,
        "=": column == known,
        "!=": column != known,
    }[op]
    # Polars takes NaN to be larger than every number; here it is no value, as null is.
    return compared & column.is_not_nan() if kind.is_float() else compared


def _value(kind: pl.DataType, name: str, text: str) -> Any:
    if kind == pl.Boolean:
        if text.lower() not in ("true", "false"):
            raise UserError(f"where: `{name}` is true or false, and not `{text[:100]}`.")
        return pl.lit(text.lower() == "true")
    if kind.is_numeric():
        try:
            return pl.lit(float(text))
        except ValueError:
            raise UserError(f"where: `{name}` is a number, and `{text[:100]}` is none.") from None
    return pl.lit(text)


def _check(frame: pl.DataFrame, name: str, option: str) -> None:
    if name not in frame.columns:
        raise UserError(f"{option}: no column `{name[:100]}`{nearest(name, frame.columns)}")
