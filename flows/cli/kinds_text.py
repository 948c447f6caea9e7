"""What `patchsae kinds` prints: the kinds of an experiment file, and the fields of one of them."""

from __future__ import annotations

from typing import Any

from patchsae.flows.cli.text import paragraph, table
from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.text import nearest
from patchsae.pipeline.experiment.fields import BASES, SHARED, described, kinds_named, purpose
from patchsae.pipeline.experiment.kinds import KINDS
from patchsae.storage.errors import UserError


def kind_rows(word: str | None) -> list[dict[str, Any]]:
    """The kinds that `word` names, with their fields: one, those of a section, or all. Raises UserError for none."""
    found: dict[tuple[str, str], type[Config]] = {}
    for section, kinds in KINDS.items():
        if word in (None, section):
            found |= {(section, kind): config for kind, config in kinds.items()}
    if word is not None and not found:
        found = {(section, word): config for section, config in kinds_named(word).items()}
        if word in SHARED:
            found["settings", word] = SHARED[word]
    if not found:
        known = [*KINDS, *SHARED, *(kind for kinds in KINDS.values() for kind in kinds)]
        raise UserError(f"{word}: no kind, section or setting is called that{nearest(str(word), known)}")
    return [
        {
            "section": section,
            "kind": kind,
            "meaning": purpose(config),
            "fields": [vars(field) for field in described(config)],
        }
        for (section, kind), config in found.items()
    ]


def kinds_text(word: str | None) -> str:
    """The kinds as a table with a sentence each, or one kind in full."""
    rows = kind_rows(word)
    if word is None or word in KINDS:
        shown = [[row["section"], row["kind"], _plain(_first_sentence(row["meaning"]))] for row in rows]
        hint = "`patchsae kinds KIND` lists the fields of one: their types, defaults and meaning."
        return table(("section", "kind", "what it is"), shown) + f"\n\n{_plain(hint)}"
    return "\n\n".join(_one(row) for row in rows)


def _one(row: dict[str, Any]) -> str:
    section, kind = row["section"], row["kind"]
    base = BASES.get(section)
    shared = {field.name for field in described(base)} if base is not None else set()
    order = sorted(row["fields"], key=lambda field: field["name"] in shared)
    cells = [
        [field["name"], *(_plain(field[part]) for part in ("type", "default", "meaning"))] for field in order
    ]
    heading = f"{section}: {{NAME: {{kind: {kind}, ...}}}}" if section in KINDS else f"{kind}: {{...}}"
    fields = table(("field", "type", "default", "meaning"), cells) if cells else "It has no fields."
    return f"{heading}\n\n{paragraph(_plain(row['meaning']))}\n\n{fields}"


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".") + "."


def _plain(text: str) -> str:
    return text.replace("`", "")
