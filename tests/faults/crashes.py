"""A process dies by SIGKILL before each of its durable writes in turn, whatever it does: a run, a rerun of every
stage, `gc --delete`, `verify --discard`.

Before the next command, what is committed is whole. After it, the store is that of the undisturbed run.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from patchsae.storage.store import Store
from tests.faults.world import SILENT, Tally, World, catching, check_whole
from tests.support.crash import Action, crash

ACTIONS: tuple[Action, ...] = ("run", "rerun", "gc", "discard")


def crashes(world: World, action: Action, every: int = 1, keep: list[Store] | None = None) -> Tally:
    """Crashes before every `every`-th durable write. `keep` receives some of the unfinished stores."""
    tally = Tally(f"crash in {action}")
    checkpoint, counter = world.folder / "tiny model.safetensors", world.folder / "n"
    assert crash(_begun(world, action), checkpoint, 0, counter, action) == 0
    n_writes = int(counter.read_text())
    for at in range(1, n_writes + 1, every):
        tally.tries += 1
        done = f"{action}, killed before write {at} of {n_writes}"
        store = _begun(world, action)
        code = crash(store, checkpoint, at, counter, action)
        if code != -signal.SIGKILL:
            tally.fault(SILENT, done, f"exit code {code}")
        if action in ("run", "rerun"):
            # What is committed is whole, at any instant; a rerun gives nothing up before it has its replacement.
            damaged = [a for a, state in store.artifacts() if state == "damaged"]
            unsound = [a for a in store.committed() if a.damaged_files()]
            if damaged or unsound:
                tally.fault(SILENT, done, f"not whole: {[a.path.name for a in (*damaged, *unsound)]}")
            if action == "rerun" and len(store.committed()) != len(world.store.committed()):
                tally.fault(SILENT, done, "an artifact was given up")
        if keep is not None and action == "run":
            shutil.copytree(store.root, world.folder / f"partial {at}", dirs_exist_ok=True)
            keep.append(Store(world.folder / f"partial {at}"))
        with catching(tally, f"{done}; the same again") as sentences:
            _again(world, store, action)
        if sentences:
            tally.fault(SILENT, done, f"refused: {sentences[0]}")
        check_whole(world, store, tally, done)
    return tally


def _begun(world: World, action: Action) -> Store:
    if action == "run":
        shutil.rmtree(world.folder / "crashed", ignore_errors=True)
        return Store(world.folder / "crashed")
    store = world.copy("crashed")
    if action == "discard":
        for stage, name in (("extract", "activations.zarr/c/1/0/0"), ("train", "sae.safetensors")):
            path = store.committed(stage)[0].path / Path(name)
            path.write_bytes(path.read_bytes()[:-1])
    return store


def _again(world: World, store: Store, action: Action) -> None:
    world.run(
        store, rerun=[node.stage.name for node in world.experiment.nodes()] if action == "rerun" else []
    )
