"""The small experiment that the campaign disturbs, and what is looked for afterwards."""

from __future__ import annotations

import contextlib
import json
import shutil
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import open_clip
import torch
from typer.testing import CliRunner

from patchsae.flows.cli.app import app
from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.damage import verify
from patchsae.pipeline.experiment.experiment import Experiment, load
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage import activations
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import StoreWarning, UserError
from patchsae.storage.store import Store
from tests.support.crash import experiment_text, write_files
from tests.support.small_run import MODELS

SILENT, BLESSED, TRACEBACK, LITTER = "silent differences", "blessed damage", "tracebacks", "litter"
FAULTS = (SILENT, BLESSED, TRACEBACK, LITTER)


@dataclass
class Tally:
    """How often something was tried, and the faults that were found: (kind, what was done, what was seen)."""

    name: str
    tries: int = 0
    announced: int = 0
    """Tries in which the program refused with a sentence before it was told to mend the store."""
    faults: list[tuple[str, str, str]] = field(default_factory=list)

    def fault(self, kind: str, done: str, seen: str) -> None:
        self.faults.append((kind, done, seen))

    def row(self) -> str:
        counts = Counter(kind for kind, _, _ in self.faults)
        shown = "  ".join(f"{kind} {counts[kind]}" for kind in FAULTS)
        return f"{self.name:<28}{self.tries:>5} tries  {self.announced:>4} refused  {shown}"


@dataclass(frozen=True)
class World:
    """The experiment, its YAML file, and the store of a run that nothing disturbed."""

    folder: Path
    experiment: Experiment
    yaml: Path
    store: Store
    expected: dict[str, bytes]

    @classmethod
    def make(cls, folder: Path) -> World:
        """Runs the experiment once, in `folder`. Sets what a process needs to run it: the model, small shards."""
        prepare_process()
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = folder / "tiny model.safetensors"
        write_files(checkpoint)
        path = folder / "tiny.yaml"
        path.write_text(experiment_text(checkpoint))
        experiment, store = load(str(path)), Store(folder / "whole")
        run(work_on(store, experiment), Runtime())
        return cls(folder, experiment, path, store, content(store))

    def copy(self, name: str) -> Store:
        """A store of its own for one try; the last one of that name is replaced."""
        root = self.folder / name
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.store.root, root, symlinks=True)
        return Store(root)

    def run(self, store: Store, rerun: Sequence[str] = ()) -> None:
        run(work_on(store, self.experiment, rerun=rerun), Runtime())

    def differences(self, store: Store) -> list[str]:
        """The files that are not those of the undisturbed store.

        An entry of a ledger may be missing: its part would be computed again if the artifact were dropped.
        """
        found = content(store)
        return [n for n in differences(self.expected, found) if n in found or "/ledger/" not in n]


def prepare_process() -> None:
    torch.set_num_threads(1)
    open_clip.add_model_config(MODELS)
    # Several shards, so that there are parts.
    activations._CHUNK_BYTES = 17 * 32 * 2 * 8


def content(store: Store) -> dict[str, bytes]:
    """Every file of a store but locks and logs; links and folders too. Of manifests, all but when, where and how long."""
    found = {}
    for path in store.root.rglob("*"):
        name = path.relative_to(store.root).as_posix()
        if name.split("/")[0] == "logs":
            continue
        if path.is_symlink():
            found[name] = b"-> " + str(path.readlink()).encode()
        elif path.is_dir():
            # The folder of the notes stays when the last one is deleted.
            if name != "dropped":
                found[f"{name}/"] = b""
        elif path.name == "manifest.json":
            manifest = Artifact(
                path.parent.parent.name, json.loads(path.read_bytes())["key"], path.parent
            ).manifest
            found[name] = manifest.model_dump_json(exclude={"provenance", "digest"}).encode()
        elif path.parent.name != "locks":
            found[name] = path.read_bytes()
    return found


def differences(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    names = sorted(expected.keys() | found.keys())
    return [name for name in names if expected.get(name) != found.get(name)]


@contextlib.contextmanager
def catching(tally: Tally, done: str) -> Iterator[list[str]]:
    """Notes any exception but UserError as a traceback. The list that is given gets the sentence of a UserError."""
    sentences: list[str] = []
    try:
        yield sentences
    except UserError as error:
        sentences.append(str(error))
    except (Exception, SystemExit):  # noqa: BLE001 (what is looked for)
        tally.fault(TRACEBACK, done, traceback.format_exc(limit=-3))


COMMANDS: tuple[tuple[str, ...], ...] = (
    ("status",),
    ("tables",),
    ("gc",),
    ("verify",),
    ("query", "SELECT COUNT(*) FROM latents"),
    ("query", "SELECT * FROM masking"),
    ("query", "SELECT stage, state FROM artifacts"),
    ("pick",),
)


def look(world: World, store: Store, tally: Tally, done: str) -> None:
    """Runs every command that reads a store; each ends with a result or with a sentence."""
    for command in (*COMMANDS, ("plan", str(world.yaml))):
        with warnings.catch_warnings(action="ignore", category=StoreWarning):
            result = CliRunner().invoke(app, [*command, "--store", str(store.root)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            shown = "".join(traceback.format_exception(result.exception, limit=-3))
            tally.fault(TRACEBACK, f"{done}; patchsae {command[0]}", shown)


def mend(world: World, store: Store, tally: Tally, done: str) -> None:
    """`verify --discard`, then the experiment: the store must be that of the undisturbed run."""
    for again in ("", " twice"):
        result = CliRunner().invoke(app, ["verify", "--discard", "--store", str(store.root)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            shown = "".join(traceback.format_exception(result.exception, limit=-3))
            tally.fault(TRACEBACK, f"{done}; verify --discard", shown)
            return
        with catching(tally, f"{done}; run after verify --discard{again}") as sentences:
            world.run(store)
        if not sentences:
            break
    else:
        tally.fault(SILENT, done, f"cannot be mended: {sentences}")
        return
    check_whole(world, store, tally, done)
    before = content(store)
    result = CliRunner().invoke(app, ["gc", "--delete", "--store", str(store.root)])
    if result.exit_code != 0 or differences(before, content(store)):
        tally.fault(SILENT, done, f"gc --delete deleted something: {result.output[-300:]}")


def check_whole(world: World, store: Store, tally: Tally, done: str) -> None:
    """Notes every difference from the undisturbed store, and every file it does not have."""
    different = world.differences(store)
    extra = [name for name in different if name not in world.expected]
    if extra:
        tally.fault(LITTER, done, ", ".join(extra[:5]))
    if len(different) > len(extra):
        clean = not verify(store, Reporter()).sentences
        kind = BLESSED if clean else SILENT
        tally.fault(kind, done, ", ".join(name for name in different if name in world.expected)[:300])
