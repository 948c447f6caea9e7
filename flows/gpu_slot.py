"""`gpu_slot`: the place of a stage among those that a Prefect server lets use GPUs at the same time.

The server counts the places of its concurrency limit `gpu`. A place is held by a lease, which ends five minutes
after it was last renewed. A server that does not answer for long, or that restarts, loses leases; a stage that
has lost its lease goes on and tries to get another one. The lock of each device (`pipeline.core.devices`) keeps
two stages of one machine apart meanwhile.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Iterator
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.client.schemas.responses import ConcurrencyLimitWithLeaseResponse
from prefect.context import TaskRunContext
from prefect.exceptions import ObjectNotFound

from patchsae.flows.dead_runs import note_lease
from patchsae.flows.run_log import run_logger
from patchsae.flows.server import has_lasting_server
from patchsae.pipeline.experiment.kinds import STAGES
from patchsae.storage.errors import UserError

GPU_LIMIT = "gpu"
_LEASE_SECONDS = 300.0
_SECONDS_BETWEEN_RENEWALS = 60.0
_SECONDS_BETWEEN_TRIES = 5.0


@contextlib.contextmanager
def gpu_slot(stage: str, device: str) -> Iterator[None]:
    """Holds a place of the limit `gpu` inside the `with` block, and waits for one first.

    It does nothing on a CPU, for a stage that uses no GPU, and with a temporary server. Raises UserError if
    the server has no concurrency limit `gpu`.
    """
    if not device.startswith("cuda") or not STAGES[stage].uses_gpu or not has_lasting_server():
        yield
        return
    with get_client(sync_client=True) as client:
        slot = _Slot(client)
        slot.wait()
        stop = threading.Event()
        # The thread is to know this run's settings and log.
        context = contextvars.copy_context()
        keeper = threading.Thread(target=context.run, args=(slot.keep, stop), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            stop.set()
            keeper.join()
            slot.give_back()


class _Slot:
    """A place of the limit and the lease that holds it; no lease while it is lost."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client
        self._lease: UUID | None = None
        self._is_silent = False

    def wait(self) -> None:
        try:
            limit = self._client.read_global_concurrency_limit_by_name(GPU_LIMIT)
        except ObjectNotFound:
            raise UserError(
                f"the Prefect server has no concurrency limit `{GPU_LIMIT}`, so two runs could share a GPU; "
                f"create it with `prefect gcl create {GPU_LIMIT} --limit 1`."
            ) from None
        is_told = False
        while not self._take():
            if not is_told:
                run_logger().warning(
                    f"waits for one of the {limit.limit} places of the limit `{GPU_LIMIT}`, which other runs hold. If "
                    f"no run holds one, free them with `prefect gcl update {GPU_LIMIT} --active-slots 0`."
                )
                is_told = True
            time.sleep(_SECONDS_BETWEEN_TRIES)

    def _take(self) -> bool:
        """Takes a place if one is free."""
        task = TaskRunContext.get()
        holder = ConcurrencyLeaseHolder(type="task_run", id=task.task_run.id) if task else None
        try:
            answer = self._client.increment_concurrency_slots_with_lease(
                [GPU_LIMIT], 1, "concurrency", _LEASE_SECONDS, holder
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.LOCKED:
                return False
            raise
        except httpx.TransportError:
            # The server may answer again.
            return False
        self._hold(ConcurrencyLimitWithLeaseResponse.model_validate(answer.json()).lease_id)
        return True

    def _hold(self, lease: UUID | None) -> None:
        self._lease = lease
        note_lease(lease)

    def keep(self, stop: threading.Event) -> None:
        """Renews the lease until `stop`, and takes a place again if it is lost."""
        while not stop.wait(_SECONDS_BETWEEN_RENEWALS):
            try:
                self._renew()
                self._is_silent = False
            except httpx.HTTPError as error:
                if not self._is_silent:
                    run_logger().warning(
                        f"the place of the limit `{GPU_LIMIT}` is not renewed: {error}; goes on."
                    )
                self._is_silent = True

    def _renew(self) -> None:
        if self._lease is None:
            if self._take():
                run_logger().info(f"has a place of the limit `{GPU_LIMIT}` again.")
            return
        try:
            self._client.renew_concurrency_lease(self._lease, _LEASE_SECONDS)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.GONE:
                raise
            run_logger().warning(
                f"the server forgot that this run holds a place of the limit `{GPU_LIMIT}`; goes on, with the device "
                "locked on this machine, and takes the next free place."
            )
            self._hold(None)
            self._renew()

    def give_back(self) -> None:
        if self._lease is None:
            return
        try:
            self._client.release_concurrency_slots_with_lease(self._lease)
        except httpx.HTTPError as error:
            run_logger().warning(
                f"the place of the limit `{GPU_LIMIT}` is free in {_LEASE_SECONDS / 60:.0f} minutes only: {error}"
            )
        self._hold(None)
