"""Every reader of an artifact against every changer of it, in two processes.

The reader holds its inputs and stands still before it reads them. The changer is started: it ends, refuses or
waits. Then the reader goes on. Its result is that of an undisturbed run, or it refuses with a sentence.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import numpy as np

from patchsae.pipeline.core import execute
from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.damage import drop_damaged, verify
from patchsae.pipeline.experiment.experiment import load
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.faults.world import SILENT, TRACEBACK, Tally, World, prepare_process
from tests.support.crash import collect_everything

Changer = Literal["rerun", "gc", "discard", "repair"]
CHANGERS: tuple[Changer, ...] = ("rerun", "gc", "discard", "repair")
_SECONDS = 60.0


def _read(root: str, yaml: str, address: str, folder: str) -> None:
    """Builds one node, and stands still between taking hold of its inputs and reading them."""
    prepare_process()
    build: Callable[..., Any] = execute._build

    def paused(*arguments: Any) -> Any:
        Path(folder, "reading").touch()
        _wait_for(Path(folder, "go"))
        return build(*arguments)

    execute._build = paused
    _reporting(Path(folder, "reader"), lambda: _run(root, yaml, only=[address]))


def _run(root: str, yaml: str, only: list[str] | None = None, rerun: list[str] | None = None) -> None:
    run(work_on(Store(root), load(yaml), only=only or [], rerun=rerun or []), Runtime())


def _change(root: str, yaml: str, changer: Changer, address: str, folder: str) -> None:
    """Changes the artifact `address` under the reader."""
    prepare_process()
    store = Store(root)
    said = execute._saying
    execute._saying = lambda work, why: lambda: (Path(folder, "waiting").touch(), said(work, why)())[0]

    def act() -> None:
        match changer:
            case "rerun":
                _write_other_numbers()
                _run(root, yaml, only=[address], rerun=[address])
            case "repair":
                _run(root, yaml, only=[address])
            case "gc":
                collect_everything(store)
            case "discard":
                drop_damaged(store, verify(store, Reporter()))

    _reporting(Path(folder, "changer"), act)


def _write_other_numbers() -> None:
    """Makes what this process builds differ in some bits, as on another GPU: who reads a mixture gets other numbers."""
    from patchsae.pipeline.activations import extract

    to_stored, write = extract.to_stored, Builder.write

    def other_activations(*arguments: Any) -> np.ndarray:
        values = to_stored(*arguments).copy()
        values.view(np.uint16)[...] ^= 1
        return values

    def other_weights(out: Builder, name: str, data: bytes) -> Path:
        if name.endswith(".safetensors"):
            data = data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]
        return write(out, name, data)

    extract.to_stored = other_activations
    Builder.write = other_weights  # type: ignore[method-assign]


def _reporting(path: Path, act: Callable[[], None]) -> None:
    """Notes how `act` ended: nothing, the sentence of a UserError, or a traceback."""
    try:
        act()
    except UserError as error:
        path.write_text(f"refused: {error}")
    except BaseException:  # noqa: BLE001 (what is looked for)
        path.write_text("traceback: " + traceback.format_exc(limit=-3))


def _wait_for(path: Path) -> None:
    end = time.monotonic() + _SECONDS
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(str(path))
        time.sleep(0.01)


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.faults.races", "sklearn.datasets"])


def pairs(world: World) -> list[tuple[str, str]]:
    """(reader, input) of every stage and each of its inputs, by their addresses; one of each kind."""
    nodes = {node.address: node for node in world.experiment.nodes()}
    found = {}
    for node in nodes.values():
        for address in node.inputs.values():
            found.setdefault((node.stage.name, nodes[address].stage.name), (node.address, address))
    return list(found.values())


def races(world: World, every: int = 1) -> Tally:
    """All pairs of a reading stage with one of its inputs, times all changers of the input."""
    tally = Tally("races")
    tries = [(reader, changed, changer) for reader, changed in pairs(world) for changer in CHANGERS]
    for reader, changed, changer in tries[::every]:
        tally.tries += 1
        _race(world, tally, reader, changed, changer)
    return tally


def _race(world: World, tally: Tally, reader: str, changed: str, changer: Changer) -> None:
    done = f"{reader} reads {changed}, {changer}"
    store = world.copy("raced")
    planned = work_on(store, world.experiment).planned
    read, of = (store.at(planned[a].node.stage.name, str(planned[a].key)) for a in (reader, changed))
    expected = {output.path: output.sha256 for output in read.manifest.outputs}
    folder = world.folder / "race"
    folder.mkdir(exist_ok=True)
    for mark in folder.iterdir():
        mark.unlink()
    store.discard(read)
    one = CONTEXT.Process(target=_read, args=(str(store.root), str(world.yaml), reader, str(folder)))
    one.start()
    while one.is_alive() and not (folder / "reading").exists():
        time.sleep(0.01)
    if changer in ("discard", "repair"):
        _damage(of, truncate=changer == "repair")
    other = CONTEXT.Process(
        target=_change, args=(str(store.root), str(world.yaml), changer, changed, str(folder))
    )
    other.start()
    _until_it_ends_or_waits(other, folder)
    # Whoever puts another artifact in its place waits for the reader; whoever deletes leaves it alone.
    if changer in ("rerun", "repair") and not (folder / "waiting").exists():
        tally.fault(SILENT, done, "the changer did not wait")
    if not of.is_committed:
        tally.fault(SILENT, done, "the input was taken away")
    (folder / "go").touch()
    for process in (one, other):
        process.join(_SECONDS)
        if process.is_alive():
            tally.fault(SILENT, done, "a process hangs")
            process.kill()
    said = {name: (folder / name).read_text() for name in ("reader", "changer") if (folder / name).exists()}
    for name, text in said.items():
        if text.startswith("traceback"):
            tally.fault(TRACEBACK, f"{done}; {name}", text)
    tally.announced += "reader" in said
    if "reader" not in said:
        now = Artifact(read.stage, read.key, read.path)
        found = {o.path: o.sha256 for o in now.manifest.outputs} if now.is_committed else {}
        wrong = now.damaged_files() if found else []
        if found != expected or wrong:
            different = [name for name in expected if found.get(name) != expected[name]]
            tally.fault(SILENT, done, ", ".join(different) or "damaged")
    elif changer in ("rerun", "gc"):
        tally.fault(SILENT, done, f"the reader was disturbed: {said['reader']}")


def _until_it_ends_or_waits(process: BaseProcess, folder: Path) -> None:
    started = time.monotonic()
    while process.is_alive() and not (folder / "waiting").exists():
        if time.monotonic() - started > _SECONDS:
            return
        time.sleep(0.01)


def _damage(artifact: Artifact, truncate: bool) -> None:
    output = artifact.manifest.outputs[-1] if artifact.manifest.outputs else None
    path = artifact.path / (output.path if output else "manifest.json")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[:-1] if truncate else data)
