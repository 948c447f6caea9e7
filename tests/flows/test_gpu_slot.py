"""The limit `gpu` of a server: who takes a place, and what happens when the server loses it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from patchsae.flows import gpu_slot as module
from patchsae.flows.gpu_slot import gpu_slot
from patchsae.storage.errors import UserError
from tests.support.prefect_server import Server


@pytest.fixture
def client(in_server: Server) -> Iterator[SyncPrefectClient]:
    """A client of a server without the limit `gpu`, which other tests may have made."""
    with get_client(sync_client=True) as client:
        with contextlib.suppress(ObjectNotFound):
            client.delete_global_concurrency_limit_by_name("gpu")
        yield client


@pytest.fixture
def leases(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The leases that a run notes, one after another."""
    noted: list[object] = []
    monkeypatch.setattr(module, "note_lease", noted.append)
    for name in ("_SECONDS_BETWEEN_RENEWALS", "_SECONDS_BETWEEN_TRIES"):
        monkeypatch.setattr(module, name, 0.05)
    return noted


def n_taken(client: SyncPrefectClient) -> int:
    return client.read_global_concurrency_limit_by_name("gpu").active_slots


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def take(client: SyncPrefectClient) -> str:
    """Takes the only place for somebody else."""
    answer = client.increment_concurrency_slots_with_lease(["gpu"], 1, "concurrency", 300)
    return answer.json()["lease_id"]


def test_a_place_is_taken_where_there_is_a_limit_and_found_again_when_it_is_lost(
    client: SyncPrefectClient, in_server: Server, leases: list[object]
) -> None:
    with gpu_slot("train", "cpu"), gpu_slot("index", "cuda"):
        pass
    with pytest.raises(UserError, match="prefect gcl create gpu --limit 1"), gpu_slot("train", "cuda"):
        pass
    in_server.run("prefect", "gcl", "create", "gpu", "--limit", "1")
    with gpu_slot("train", "cuda"):
        assert n_taken(client) == 1
        # The server forgets the lease, and somebody else takes the place.
        client.release_concurrency_slots_with_lease(leases[-1])
        other = take(client)
        wait_until(lambda: leases[-1] is None)
        assert n_taken(client) == 1
        client.release_concurrency_slots_with_lease(other)
        wait_until(lambda: leases[-1] is not None)
        assert n_taken(client) == 1
    assert n_taken(client) == 0 and leases[-1] is None


def test_a_run_waits_for_a_place_and_says_so(
    client: SyncPrefectClient, leases: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    client.request("POST", "/v2/concurrency_limits/", json={"name": "gpu", "limit": 1})
    other = take(client)
    said: list[str] = []

    class Log:
        def warning(self, text: str) -> None:
            said.append(text)
            client.release_concurrency_slots_with_lease(other)

    monkeypatch.setattr(module, "run_logger", Log)
    with gpu_slot("train", "cuda:1"):
        assert n_taken(client) == 1
    [line] = said
    assert line.startswith("waits for one of the 1 places of the limit `gpu`")
    assert "prefect gcl update gpu --active-slots 0" in line
