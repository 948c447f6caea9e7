"""What a command shows on a terminal, and what it does when nobody reads its output any more."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from patchsae.flows.cli import text
from patchsae.storage.store import Store
from tests.support.prefect_server import ROOT

# The command line, held at the import of a module until a line is typed. Then the command is refused.
HELD = """
import sys
from patchsae.flows.cli.app import app
from patchsae.storage.errors import UserError
class Hold:
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            input()
            raise UserError("that is enough.")
sys.meta_path.insert(0, Hold())
app(sys.argv[2:])
"""


def on_a_terminal(module: str, arguments: list[str], wanted: bytes) -> tuple[bytes, bytes, int]:
    """Runs a command that is held at the import of `module` until it shows `wanted`: what it showed before and
    after, and its exit status."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", HELD, module, *arguments])
    shown = b""
    while wanted not in shown:
        shown += os.read(terminal, 1024)
    os.write(terminal, b"\n")
    after = b"".join(_read(terminal))
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return shown, after, os.waitstatus_to_exitcode(status)


def _read(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(terminal, 1024)
        except OSError:
            # Linux says so when the other end of a terminal is closed.
            return
        if not data:
            return
        yield data


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("patchsae.flows.cli.show", ["plan", "demo"]),
        ("patchsae.flows.cli.run", ["run", "demo"]),
        ("patchsae.flows.cli.demo", ["demo"]),
        ("patchsae.pipeline.results.status", ["status"]),
        ("patchsae.pipeline.results.sql", ["query", "SELECT 1"]),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_a_terminal_says_what_is_waited_for(module: str, arguments: list[str]) -> None:
    before, after, code = on_a_terminal(module, arguments, b"loading patchsae ...")
    assert re.search(rb"loading patchsae \.\.\.( \d+ s)?$", before)
    # The line is taken away before something else is shown.
    assert after.endswith(b"\r\x1b[2Kpatchsae: that is enough.\r\n") and code == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_enough_is_no_error(unbuffered: str, small_store: Store) -> None:
    sql = "SELECT a.* FROM latents a CROSS JOIN classes b"
    command = [sys.executable, "-m", "patchsae.flows.cli.app", "query", sql, "--format", "csv"]
    command += ["--store", str(small_store.root)]
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -1; exit "${PIPESTATUS[0]}"', "bash", *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    assert done.stdout.count("\n") == 1 and done.stderr == "" and done.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said() -> None:
    full = '"$@" > /dev/full'
    done = subprocess.run(
        ["bash", "-c", full, "bash", sys.executable, "-m", "patchsae.flows.cli.app", "status"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    said = "patchsae: standard output: cannot be written (No space left on device).\n"
    assert done.stderr == said and done.returncode == 2


def test_nobody_reads_standard_error() -> None:
    code = (
        "from patchsae.flows.cli.screen import error\n"
        "from patchsae.pipeline.core.progress import ConsoleReporter\n"
        "error('first')\n"
        "for _ in range(200):\n"
        "    error('x' * 1000)\n"
        "with ConsoleReporter().bar('train', 3, 'steps') as bar:\n"
        "    bar.advance(3)\n"
        "print('goes on')"
    )
    piped = '{ "$1" -c "$2" 2>&1 >&3 | head -1 >&2; exit "${PIPESTATUS[0]}"; } 3>&1'
    done = subprocess.run(
        ["bash", "-c", piped, "bash", sys.executable, code],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0 and done.stderr == "first\n" and done.stdout == "goes on\n"


# Tables

HEADER = ("stage", "bytes", "why")
ROWS = [
    ["classifier/shapes.background-shapesclip-dataset", "1.0 kB", "never run"],
    ["train/relu", "2.1 MB", "the code changed, " * 8 + "and so did this"],
]


def widths(shown: str) -> list[int]:
    return [len(line) for line in shown.splitlines()]


@pytest.mark.parametrize("width", [120, 100, 60, 40])
def test_a_table_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_width", lambda: width)
    shown = text.table(HEADER, ROWS, right=("bytes",))
    assert max(widths(shown)) <= width and len(shown.splitlines()) > 4
    words = " ".join(shown.split())
    # Nothing is lost, and numbers are not broken.
    assert words.count("the code changed,") == 8 and "never run" in words and "2.1 MB" in words
    if width >= 100:
        assert ROWS[0][0] in shown and "why" in shown


def test_a_table_in_a_file_has_a_line_per_row() -> None:
    assert len(text.table(HEADER, ROWS).splitlines()) == 2 + len(ROWS)


def test_a_long_cell_does_not_lengthen_the_rule_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text.sys.stdout, "isatty", lambda: False, raising=False)
    head, rule, row = text.table(["stage", "summary"], [["index", "x" * 700]]).split("\n")
    assert head.split() == ["stage", "summary"] and row.endswith("x" * 700)
    assert set(rule) == {"─"} and len(rule) == 120
