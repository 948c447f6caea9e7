from __future__ import annotations

import os
from pathlib import Path

from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.experiment.damage import verify
from patchsae.pipeline.experiment.unneeded import delete_unneeded, unneeded
from patchsae.pipeline.results.status import status_rows
from patchsae.storage.run_logs import KEPT
from patchsae.storage.store import Store


def test_two_runs_that_begin_at_once_have_a_file_each(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    with store.open_log("photos") as one, store.open_log("photos") as other:
        one.write("one")
        other.write("other")
    texts = {path.read_text() for path in (store.root / "logs").iterdir()}
    assert texts == {"one", "other"}
    assert all(path.name.startswith("photos-") for path in (store.root / "logs").iterdir())


def test_the_newest_are_kept_and_those_of_runs_that_go_on(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    with store.open_log("going-on") as going_on:
        os.utime(going_on.name, (1, 1))
        names = []
        for i in range(KEPT + 5):
            with store.open_log("photos") as file:
                names.append(Path(file.name).name)
            os.utime(file.name, (1000 + i, 1000 + i))
        left = {path.name for path in (store.root / "logs").iterdir()}
        assert Path(going_on.name).name in left
    # The newest one of all had no age yet when the others were counted.
    assert left - {Path(going_on.name).name} == set(names[-KEPT:])


def test_logs_are_no_artifacts(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    store.open_log("photos").close()
    (store.root / "logs" / ("0" * 16)).mkdir()
    assert status_rows(store) == [] and unneeded(store) == []
    assert verify(store, Reporter()).sentences == []
    delete_unneeded(store)
    assert len(list((store.root / "logs").glob("photos-*.log"))) == 1
