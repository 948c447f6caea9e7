"""`patchsae explore` as a process: its address, its port, its start and its end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from patchsae.explorer import serve
from patchsae.explorer.serve import listen
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.command import patchsae, sentence

COMMAND = [sys.executable, "-m", "patchsae.flows.cli.app", "explore", "--no-browser"]


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server and its address. It is killed at the end of the block, if it still runs."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline().strip()
        assert " is at http://" in line, process.stderr.read()
        yield process, line.rpartition(" ")[2]
    finally:
        process.kill()
        process.communicate()


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answered:
        found: bytes = answered.read()
    return found


def test_it_serves_a_store_and_ends_at_ctrl_c_though_a_query_runs(small_store: Store) -> None:
    endless = "SELECT SUM(a.rank) FROM latent_images a CROSS JOIN latent_images b CROSS JOIN latent_images c"
    with running("--store", str(small_store.root), "--port", "0") as (process, url):
        assert b"<html" in read(url).lower()
        assert json.loads(read(f"{url}api/home"))["store"] == str(small_store.root)

        def ask() -> None:
            with pytest.raises((urllib.error.URLError, ConnectionError)):
                read(f"{url}api/sql?{urllib.parse.urlencode({'q': endless})}")

        asking = threading.Thread(target=ask)
        asking.start()
        asking.join(2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        asking.join(20)
        assert not asking.is_alive()
    assert process.returncode == 0
    assert said.splitlines() == ["Ctrl-C ends it.", "The explorer has ended."]


def test_a_second_server_takes_the_next_port_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = listen("127.0.0.1", 0)
    monkeypatch.setattr(serve, "PORT", first.port)
    second = listen("127.0.0.1", None)
    assert first.port < second.port < first.port + 20
    for one in (first, second):
        one.socket.close()


def test_a_port_that_is_named_and_in_use_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = sentence(patchsae("explore", "--store", tmp_path, "--port", port, "--no-browser"))
    assert refused.startswith(f"--port {port}: is in use") and "leave it out" in refused


def test_when_all_ports_are_in_use_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(serve, "PORT", taken.getsockname()[1])
        monkeypatch.setattr(serve, "_TRIES", 1)
        with pytest.raises(UserError, match="all in use"):
            listen("127.0.0.1", None)


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    for host in ("192.0.2.1", "no.such.name.invalid"):
        refused = sentence(patchsae("explore", "--store", tmp_path, "--host", host, "--no-browser"))
        assert refused.startswith(f"--host {host}: cannot listen there")


def test_any_other_address_gets_a_token_in_its_url(tmp_path: Path) -> None:
    with running("--store", str(tmp_path / "none"), "--port", "0", "--host", "0.0.0.0") as (_, url):
        parts = urllib.parse.urlsplit(url)
        [token] = urllib.parse.parse_qs(parts.query)["token"]
        local = f"http://127.0.0.1:{parts.port}"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            read(f"{local}/api/home")
        with urllib.request.urlopen(f"{local}/?token={token}", timeout=60) as answered:
            cookie = answered.headers["set-cookie"].split(";")[0]
        asked = urllib.request.Request(f"{local}/api/home", headers={"cookie": cookie})
        with urllib.request.urlopen(asked, timeout=60) as answered:
            assert "patchsae demo" in json.loads(answered.read())["advice"]


START = """
import sys
from starlette.testclient import TestClient
from patchsae.flows.cli.app import app
from patchsae.flows.cli import explore
from patchsae.explorer import serve
from patchsae.explorer.app import application
from patchsae.explorer.guard import Policy

def refuse(request, body):
    raise AssertionError("no data")

client = TestClient(application(refuse, refuse, Policy.of("127.0.0.1", 8765)), base_url="http://127.0.0.1:8765")
assert client.get("/").status_code == 200
HEAVY = ("torch", "torchvision", "open_clip", "prefect", "distributed", "polars", "pyarrow", "numpy", "zarr", "sklearn")
print(*(name for name in HEAVY if name in sys.modules))
"""


def test_nothing_heavy_is_loaded_before_the_first_page() -> None:
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True)
    assert done.stdout == "\n", done.stderr


def test_the_demo_ends_with_how_to_see_it_or_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from patchsae.flows.cli import demo, experiments, run
    from patchsae.pipeline.experiment import request

    shown: list[str] = []
    monkeypatch.setattr(run, "launch", lambda *_: None)
    monkeypatch.setattr(request, "open_work", lambda *_, **__: None)
    monkeypatch.setattr(demo, "report", lambda _: "the report")
    monkeypatch.setattr(experiments, "show", shown.append)
    said = patchsae("demo", "--store", "my store").stdout.splitlines()
    assert said[0] == "the report" and "patchsae explore --store 'my store'" in said[-1] and shown == []
    assert patchsae("demo", "--store", "my store", "--explore").exit_code == 0 and shown == ["my store"]
