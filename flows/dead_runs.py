"""Runs whose process was killed: the next run on the same store tells the Prefect server that they crashed.

A process that is killed, or whose machine stops, tells the server nothing, which then shows it as running for
ever. `marked_alive` lets a run hold a lock in the store while it lives (`storage.run_marks`), so that the next
run sees which ones are gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.logging.loggers import flow_run_logger
from prefect.states import Crashed

from patchsae.flows.run_log import run_logger
from patchsae.flows.server import has_lasting_server
from patchsae.storage.run_marks import Abandoned, Mark
from patchsae.storage.store import Store

_mark: ContextVar[Mark | None] = ContextVar("patchsae_run_mark", default=None)

# A run that this server does not know may be another server's. After this time its mark is removed anyway.
_SECONDS_FOR_OTHER_SERVERS = 30 * 24 * 3600.0
_PER_PAGE = 200
_LIVE = (StateType.RUNNING, StateType.CANCELLING)


@contextlib.contextmanager
def marked_alive(store: Store) -> Iterator[None]:
    """Inside the `with` block, the present flow run counts as alive; before it, the dead ones are reported.

    It does nothing with a temporary server, which ends with its run.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not has_lasting_server():
        yield
        return
    with store.run_marks.alive(str(context.flow_run.id)) as mark:
        mark.note(run_count=context.flow_run.run_count, leases=[])
        token = _mark.set(mark)
        try:
            with get_client(sync_client=True) as client:
                store.run_marks.bury(lambda dead: _report(client, dead))
            yield
        finally:
            _mark.reset(token)


def note_lease(lease: UUID | None) -> None:
    """Notes the lease that the present run holds, to be given back for it if it is killed."""
    mark = _mark.get()
    if mark is not None:
        mark.note(leases=[str(lease)] if lease else [])


def _report(client: SyncPrefectClient, dead: Abandoned) -> bool:
    """Tells the server that a run crashed. Returns whether there is nothing left to tell about it."""
    try:
        run = client.read_flow_run(UUID(dead.name))
        if run.run_count > dead.content.get("run_count", run.run_count):
            # It was started again, and its new process has not marked itself yet.
            return True
        for lease in dead.content.get("leases", []):
            client.release_concurrency_slots_with_lease(UUID(lease))
        process = f"process {dead.content.get('pid', '?')} on {dead.content.get('host', 'another machine')}"
        n_marked = _crash(client, run, f"Its {process} ended without saying so; run it again to go on.")
    except ObjectNotFound:
        return dead.seconds_of_silence > _SECONDS_FOR_OTHER_SERVERS
    except httpx.HTTPError as error:
        run_logger().warning(f"a run that was killed is not marked as crashed yet: {error}")
        return False
    if n_marked:
        run_logger().warning(f"Run `{run.name}` is marked as crashed: its {process} is gone.")
    return True


def _crash(client: SyncPrefectClient, run: FlowRun, message: str) -> int:
    """Marks a run, the flows inside it and their tasks as crashed, where they are not final. Returns how many."""
    n_marked = 0
    inner = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
    for child in client.read_flow_runs(flow_run_filter=inner):
        n_marked += _crash(client, child, message)
    for task in _tasks_not_final(client, run):
        client.set_task_run_state(task, Crashed(message=message), force=True)
        n_marked += 1
    if run.state is not None and run.state.type in _LIVE:
        client.set_flow_run_state(run.id, Crashed(message=message), force=True)
        flow_run_logger(run).error(message)
        n_marked += 1
    return n_marked


def _tasks_not_final(client: SyncPrefectClient, run: FlowRun) -> list[UUID]:
    found: list[UUID] = []
    kinds = [kind for kind in StateType if kind not in TERMINAL_STATES]
    while page := client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=kinds))),
        limit=_PER_PAGE,
        offset=len(found),
    ):
        found += [task.id for task in page]
    return found
