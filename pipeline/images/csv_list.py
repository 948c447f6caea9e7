"""Reads a CSV file that lists images with their classes and splits, as spreadsheets save it."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from patchsae.pipeline.core.text import nearest
from patchsae.pipeline.images.files import is_there
from patchsae.storage.errors import UserError

COLUMNS = ("path", "label", "class_name", "split")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
# A line before the header, by which spreadsheets tell each other what divides the cells.
_SEP = re.compile(r"sep=([,;\t|])\r?[\r\n]", re.IGNORECASE)
_LABEL = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Listed:
    """A row of the list. `split` is empty if the file has no such column."""

    source: str
    label: int
    class_name: str
    split: str


def read_list(path: Path) -> tuple[list[str], list[Listed]]:
    """The names of the classes, in the order of their labels, and the rows of the file, in its order.

    Without a column `label`, classes are numbered in the sorted order of their names. Without `class_name`, a
    class is named by its label. Raises UserError, naming the line, if the file is not such a list.
    """
    rows = list(_rows(path, _text(path)))
    if not rows:
        raise UserError(f"csv {path}: lists no image; it has a header and no row below it.")
    columns = rows[0][1].keys()
    if "label" in columns:
        class_names = _names_by_label(path, rows, "class_name" in columns)
        labels = [int(row["label"]) for _, row in rows]
    else:
        class_names = sorted({row["class_name"] for _, row in rows})
        number = {name: label for label, name in enumerate(class_names)}
        labels = [number[row["class_name"]] for _, row in rows]
    lines: dict[str, int] = {}
    for line, row in rows:
        if (first := lines.setdefault(row["path"], line)) != line:
            raise UserError(
                f"csv {path}, line {line}: {row['path']!r} is listed twice (before in line {first}); list each "
                "image once."
            )
    listed = [
        Listed(row["path"], label, class_names[label], row.get("split", ""))
        for label, (_, row) in zip(labels, rows, strict=True)
    ]
    return class_names, listed


def _text(path: Path) -> str:
    """The content of the file. A byte order mark says whether it is UTF-16, as a spreadsheet's `Unicode text`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"csv {path}: cannot be read ({error.strerror}); give the file of the list."
        ) from None
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"csv {path}: cannot be read as CSV in UTF-8 (byte {error.start:,}); save it as that (in Excel: "
            "`CSV UTF-8`)."
        ) from None


def _rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, column -> cell) of every row that is not empty. Cells lose spaces at both ends."""
    told = _SEP.match(text)
    delimiter, header = _header(path, text[told.end() :] if told else text, told[1] if told else None)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for _ in range(2 if told else 1):
            next(reader)
        line = reader.line_num + 1
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                yield line, _row(f"csv {path}, line {line}", header, cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"csv {path}, line {reader.line_num}: cannot be read as CSV ({error}).") from None


def _header(path: Path, text: str, told: str | None) -> tuple[str, list[str]]:
    """The delimiter of the file, and the names of its columns in lower case, from its first line.

    The delimiter is the one that the file has `told`, or the one with which the line has the most of the columns
    of a list.
    """
    first = text.lstrip("\r\n").splitlines()[0] if text.strip() else ""
    if text[:1] in "\r\n" and first:
        raise UserError(f"csv {path}: begins with an empty line; begin with the names of the columns.")
    found = {}
    for delimiter in (told,) if told else _DELIMITERS:
        try:
            cells = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error as error:
            raise UserError(f"csv {path}, line 1: cannot be read as CSV ({error}).") from None
        found[delimiter] = [cell.strip().lower() for cell in cells]
    delimiter = max(found, key=lambda one: sum(name in COLUMNS for name in found[one]))
    header = found[delimiter]
    needs = f"it needs path, class_name or label or both, and may have split; {', '.join(_DELIMITERS.values())} divide"
    for name in COLUMNS:
        if header.count(name) > 1:
            raise UserError(f"csv {path}: has two columns `{name}`; keep one of them.")
    if "path" not in header:
        raise UserError(
            f"csv {path}: has no column `path`{nearest('path', [name for name in header if name])} In its first line "
            f"{needs} them."
        )
    if "label" not in header and "class_name" not in header:
        raise UserError(
            f"csv {path}: has no column `class_name` and no `label`; {needs} them. Images without classes get one "
            "word in all rows."
        )
    return delimiter, header


def _row(where: str, header: list[str], cells: list[str]) -> dict[str, str]:
    if any(cells[len(header) :]):
        raise UserError(
            f"{where}: has {len(cells)} cells and the first line {len(header)}; put quotes around a name that holds "
            "the character that divides cells."
        )
    row = {name: cell for name, cell in zip(header, cells, strict=False) if name in COLUMNS}
    absent = [name for name in header if name in COLUMNS and not row.get(name)]
    if absent:
        short = "the line is too short" if absent[0] not in row else "the cell is empty"
        raise UserError(f"{where}: has no `{absent[0]}`; {short}.")
    if "\0" in row["path"]:
        raise UserError(f"{where}: path {row['path']!r} holds a NUL; no file has such a name.")
    if "label" in row and not _LABEL.fullmatch(row["label"]):
        raise UserError(f"{where}: label `{row['label'][:40]}` is no class id (0, 1, 2, ...).")
    return row


def _names_by_label(path: Path, rows: list[tuple[int, dict[str, str]]], are_named: bool) -> list[str]:
    found: dict[int, str] = {}
    for line, row in rows:
        label = int(row["label"])
        name = row["class_name"] if are_named else str(label)
        if found.setdefault(label, name) != name:
            raise UserError(
                f"csv {path}, line {line}: label {label} is `{name}` here and `{found[label]}` before."
            )
    unused = sorted(set(range(len(found))) - found.keys())
    if unused:
        raise UserError(f"csv {path}: labels must be 0 to {len(found) - 1}, but {unused[0]} has no row.")
    return [found[label] for label in range(len(found))]


def hint(sources: Sequence[str], root: Path) -> str:
    """What may be wrong with paths that lead to no file."""
    if any("\\" in source and is_there(root / source.replace("\\", "/")) for source in sources):
        return "; write `/` between folders instead of `\\`"
    if any(is_there(root / Path(source).name) for source in sources):
        return "; paths are relative to `root`, which holds files of these names itself"
    return ""
