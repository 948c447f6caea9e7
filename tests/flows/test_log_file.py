"""The log of a run: what it holds, and that a run does not depend on it."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from patchsae.flows.cli.log_file import logged
from patchsae.flows.cli.screen import Verbosity, showing
from patchsae.pipeline.core.execute import execute
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import load
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage import run_logs
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store


def build(store: Store, little: Path) -> None:
    run(work_on(store, load(str(little))), Runtime())


def text_of_log(store: Store) -> str:
    [log] = (store.root / "logs").iterdir()
    return log.read_text()


def test_it_tells_how_each_stage_went(
    store: Store, little: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(store.committed("train")[0].path)
    monkeypatch.setattr("sys.argv", ["patchsae", "run", "a file.yaml"])
    with showing(), logged(store, "little", {"device": "cpu"}):
        build(store, little)
        warnings.warn("something is odd", UserWarning, stacklevel=1)
    text = text_of_log(store)
    assert "command: patchsae run 'a file.yaml'" in text and "torch 2" in text and "device='cpu'" in text
    assert "index/shapes is in the store" in text
    started, ended = text.index("train/relu starts (never run)"), text.index("train/relu is done after")
    assert started < ended < text.index("UserWarning: something is odd") < text.index("the run ended well")
    # One line announces it; the rest is for who looks.
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.splitlines() == [f"Log: {next((store.root / 'logs').iterdir())}"]


def test_it_holds_the_error_and_where_it_was_raised(store: Store, little: Path, monkeypatch: Any) -> None:
    shutil.rmtree(store.committed("train")[0].path)

    def fails_to_train(store: Store, works: Any, *others: Any) -> Any:
        if works[0].address == "train/relu":
            raise UserError("it is hot.")
        return execute(store, works, *others)

    monkeypatch.setattr("patchsae.pipeline.experiment.run.execute", fails_to_train)
    with showing(), pytest.raises(UserError), logged(store, "little", {}):
        build(store, little)
    text = text_of_log(store)
    assert "train/relu failed after" in text
    assert "ERROR the run failed: it is hot." in text and "Traceback" in text and "ended well" not in text


def test_an_interrupt_is_no_traceback(store: Store) -> None:
    with showing(), pytest.raises(KeyboardInterrupt), logged(store, "little", {}):
        raise KeyboardInterrupt
    assert "the run was interrupted" in text_of_log(store) and "Traceback" not in text_of_log(store)


def test_a_full_disk_ends_the_log_and_not_the_run(
    store: Store, little: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(store.committed("train")[0].path)
    opened = run_logs.open_log

    def full(folder: Path, name: str) -> Any:
        opened(folder, name).close()
        return open("/dev/full", "w")  # noqa: PTH123

    monkeypatch.setattr(run_logs, "open_log", full)
    with showing(), logged(store, "little", {}):
        build(store, little)
    assert store.committed("train")
    assert "Traceback" not in capsys.readouterr().err


def test_a_store_without_room_for_logs_gets_none(
    store: Store, little: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store.root / "logs").write_text("in the way")
    with showing(), logged(store, "little", {}):
        build(store, little)
    assert "No log of this run is written" in capsys.readouterr().err


def test_verbose_shows_what_stages_do_and_quiet_does_not(
    store: Store, little: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for quiet, verbose in ((False, True), (True, False)):
        shutil.rmtree(store.committed("train")[0].path)
        with showing(), logged(store, "little", {}):
            Verbosity.choose(quiet, verbose)
            build(store, little)
        assert ("train/relu starts (never run)" in capsys.readouterr().err) == verbose
