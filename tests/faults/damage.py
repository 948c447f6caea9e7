"""Every kind of file is damaged in seven ways, in finished stores and in unfinished ones.

In a finished store, what was made from the damaged artifact is then deleted, so that the next run reads the
damaged file. Every run ends with the right result or with a sentence; `verify --discard` and another run
restore the store to the byte.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.experiment.damage import verify
from patchsae.storage.store import Store
from tests.faults.world import BLESSED, SILENT, Tally, World, catching, look, mend


def _flip(path: Path) -> None:
    """One bit in the middle of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _high_bit(path: Path) -> None:
    """The highest bit of a byte: text is no text any more."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x80
    path.write_bytes(data)


def _other_content(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


WAYS: dict[str, Callable[[Path], None]] = {
    "one bit": _flip,
    "a high bit": _high_bit,
    "zeros": _other_content,
    "half": _truncate,
    "deleted": Path.unlink,
    "a folder": _folder,
    "a dangling link": _dangling_link,
}


def kinds(store: Store) -> list[Path]:
    """One file of every kind, relative to the store: of every stage, every name without its numbers."""
    found: dict[str, Path] = {}
    for path in sorted(store.root.rglob("*")):
        name = path.relative_to(store.root)
        if path.is_file() and name.parts[0] not in ("locks", "logs"):
            rest = name.parts[2:] if len(name.parts) > 2 else name.parts[1:]
            found.setdefault(re.sub(r"\d+", "#", "/".join((name.parts[0], *rest))), name)
    return list(found.values())


def tries(paths: list[Path]) -> Iterator[tuple[Path, str]]:
    for path in paths:
        for way in WAYS:
            yield path, way


def after_commit(world: World, every: int = 1) -> Tally:
    """Damage to finished artifacts and to records."""
    tally = Tally("damage after commit")
    for number, (name, way) in enumerate(tries(kinds(world.store))):
        if number % every:
            continue
        tally.tries += 1
        done = f"{name}: {way}"
        store = world.copy("damaged")
        WAYS[way](store.root / name)
        look(world, store, tally, done)
        for artifact in _made_from(world, name):
            shutil.rmtree(store.at(*artifact).path)
        _go_on(world, store, tally, name, done)
    return tally


def _go_on(world: World, store: Store, tally: Tally, name: Path, done: str) -> None:
    """The next run, and then `verify --discard` and another one."""
    with catching(tally, f"{done}; run") as sentences:
        world.run(store)
    tally.announced += bool(sentences)
    if not sentences:
        _compare(world, store, tally, name, done)
    mend(world, store, tally, done)


def _made_from(world: World, name: Path) -> list[tuple[str, str]]:
    """(stage, key) of every artifact that was made from the one that a file belongs to."""
    artifacts = world.store.committed()
    wanted = {a.identity for a in artifacts if name.is_relative_to(a.path.relative_to(world.store.root))}
    found: list[tuple[str, str]] = []
    for _ in artifacts:
        follows = [a for a in artifacts if wanted & set(a.manifest.inputs.values())]
        found = [(a.stage, a.key) for a in follows]
        wanted |= {a.identity for a in follows}
    return found


def _compare(world: World, store: Store, tally: Tally, name: Path, done: str) -> None:
    """After a run without an error, only the damaged file itself may differ, and `verify` must say so."""
    different = world.differences(store)
    others = [one for one in different if not one.startswith(name.as_posix())]
    if others:
        tally.fault(SILENT, done, ", ".join(others[:5]))
    elif different and not verify(store, Reporter()).sentences:
        tally.fault(BLESSED, done, ", ".join(different[:5]))


def before_commit(world: World, partial: list[Store], every: int = 1) -> Tally:
    """Damage to what killed runs left, which the next run resumes from."""
    tally = Tally("damage before commit")
    seen: set[str] = set()
    number = 0
    for whole in partial:
        for name in kinds(whole):
            stage = "/".join((name.parts[0], *(name.parts[2:] if len(name.parts) > 2 else name.parts[1:])))
            is_unfinished = not (whole.root.joinpath(*name.parts[:2]) / "manifest.json").exists()
            kind = re.sub(r"\d+", "#", stage)
            if not is_unfinished or kind in seen:
                continue
            seen.add(kind)
            for way in WAYS:
                number += 1
                if number % every:
                    continue
                tally.tries += 1
                done = f"unfinished {name}: {way}"
                store = Store(world.folder / "damaged")
                shutil.rmtree(store.root, ignore_errors=True)
                shutil.copytree(whole.root, store.root)
                WAYS[way](store.root / name)
                look(world, store, tally, done)
                _go_on(world, store, tally, name, done)
    return tally
