"""`Ledger`: the record of which parts of an unfinished artifact are done, from which a killed run resumes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from patchsae.storage.atomic import remove, write_atomic
from patchsae.storage.files import FileRecord, read_regular
from patchsae.storage.keys import canonical_json, digest_json, parse_json


class Ledger:
    """The finished parts of the artifact in `root`: one small file per part.

    A part's entry is written only after the part's files were forced to the disk, so a crash cannot lose data
    that the ledger lists. A part counts as missing if its entry was edited, names a file outside the artifact, or
    one of its files has another size.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "ledger"

    def _entry(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.json"

    def record(self, part: int, files: Sequence[FileRecord], values: dict[str, Any] | None = None) -> None:
        """Marks `part` as done. Its files must have been forced to the disk, as `write_atomic` does.

        `values` are small results that the stage needs again when it finishes.
        """
        body = {"part": part, "files": [vars(file) for file in files], "values": values or {}}
        write_atomic(self._entry(part), canonical_json({**body, "digest": digest_json(body)}).encode())

    def _read(self, part: int) -> dict[str, Any] | None:
        try:
            entry = parse_json(read_regular(self._entry(part)))
            claimed = entry.pop("digest")
            inside = all(FileRecord(**file).is_inside() for file in entry["files"])
            return entry if inside and claimed == digest_json(entry) else None
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return None

    def parts(self) -> list[int]:
        """The numbers of the parts that have an entry, ascending."""
        found = []
        for path in self.folder.glob("part-*.json"):
            with contextlib.suppress(ValueError):
                found.append(int(path.stem.split("-")[1]))
        return sorted(found)

    def files(self, part: int) -> list[FileRecord]:
        """The files of a part; empty if it has no sound entry."""
        entry = self._read(part)
        return [FileRecord(**file) for file in entry["files"]] if entry else []

    def values(self, part: int) -> dict[str, Any]:
        """The `values` that were recorded for a part. Raises KeyError if it has no sound entry."""
        entry = self._read(part)
        if entry is None:
            raise KeyError(part)
        values: dict[str, Any] = entry["values"]
        return values

    def damaged(self) -> list[Path]:
        """The files of entries that are not what was written."""
        return [self._entry(part) for part in self.parts() if self._read(part) is None]

    def remove_damaged(self) -> None:
        """Deletes the entries that are not what was written, so that their parts are done again."""
        for path in self.damaged():
            remove(path)

    def is_done(self, part: int) -> bool:
        entry = self._read(part)
        if entry is None:
            return False
        return all(FileRecord(**file).has_right_size(self.root) for file in entry["files"])

    def missing(self, n_parts: int) -> list[int]:
        """The numbers of the parts that are not done, ascending. Their files are not read."""
        return [part for part in range(n_parts) if not self.is_done(part)]

    def drop_unsound(self, n_parts: int) -> list[int]:
        """Forgets the parts whose files are not what was written; returns all missing parts, ascending.

        Reads every file of every part.
        """
        for part in range(n_parts):
            if not all(file.is_sound(self.root) for file in self.files(part)):
                remove(self._entry(part))
        return self.missing(n_parts)

    def n_bytes(self) -> int:
        """Bytes of the files of all parts that are done."""
        return sum(file.bytes for part in self.parts() if self.is_done(part) for file in self.files(part))

    def n_done(self) -> int:
        """How many parts are done. A plan needs it, which does not know the number of all parts."""
        return sum(map(self.is_done, self.parts()))

    def forget(self, files: Iterable[str]) -> None:
        """Deletes the entries of the parts that wrote some files, so that they are done again.

        `files` are relative to the artifact. Damaged entries are deleted too.
        """
        wanted = set(files)
        for part in self.parts():
            entry = self._read(part)
            if entry is None or any(record["path"] in wanted for record in entry["files"]):
                remove(self._entry(part))
