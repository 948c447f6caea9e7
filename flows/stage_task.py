"""The one Prefect task: it builds the artifact of a node, or is `Cached` because its manifest is there.

The store decides; Prefect's cache mirrors it. The cache key is the artifact's key, the cached result a small
reference, and whoever calls the task sets `refresh_cache` when the artifact is not committed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from prefect import Task, task
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.sync import concurrency
from prefect.context import TaskRunContext
from prefect.exceptions import ObjectNotFound

from flows.show import number
from flows.temporary_server import has_lasting_server
from storage.artifacts import Artifact, Store
from storage.errors import UserError

GPU_LIMIT = "gpu"
_STAGES_WITHOUT_GPU = {"index", "weights", "import"}


class Reference(TypedDict):
    """Where an artifact is; the result of a task."""

    stage: str
    key: str
    path: str


class Build:
    """The work of a task. It stays in this process: Prefect copies a task's parameters to the Dask workers of
    flows inside it, which have no use for it."""

    def __init__(self, call: Callable[[], Artifact] | None) -> None:
        self._call = call

    def __call__(self) -> Artifact:
        assert self._call is not None, "built where it was not meant to be"
        return self._call()

    def __reduce__(self) -> tuple[type[Build], tuple[None]]:
        return Build, (None,)


def cache_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """The artifact's key, after its stage."""
    return f"{parameters['stage']}-{parameters['key']}"


def is_environment(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether a failure may pass by itself: a full network, a lost mount. A bug or a bad input does not."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError)


@task(
    name="stage",
    cache_key_fn=cache_key,
    persist_result=True,
    result_serializer="json",
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=is_environment,
)
def run_stage(experiment: str, address: str, stage: str, key: str, device: str, build: Build) -> Reference:
    """Builds one artifact and shows its summary as a table in Prefect."""
    with gpu_slot(stage, device):
        artifact = build()
    create_table_artifact(
        key=slug(f"{experiment}-{address}"),
        table=[{"name": name, "value": number(value)} for name, value in artifact.manifest.summary.items()],
        description=f"`{address}` of `{experiment}`: key `{key[:16]}`, at `{artifact.path}`",
    )
    return {"stage": stage, "key": key, "path": str(artifact.path)}


def results_folder(store: Store) -> Path:
    """Where Prefect keeps the references, inside the store."""
    return store.root / "prefect" / "results"


def slug(text: str) -> str:
    """A name Prefect accepts as an artifact's key: lower-case letters, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@contextlib.contextmanager
def gpu_slot(stage: str, device: str) -> Iterator[None]:
    """Holds the GPU's place on a server that several runs share; nothing on a CPU or a temporary server.

    Raises UserError if the server has no such limit.
    """
    if not device.startswith("cuda") or stage in _STAGES_WITHOUT_GPU or not has_lasting_server():
        yield
        return
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(GPU_LIMIT)
        except ObjectNotFound:
            raise UserError(
                f"the Prefect server has no concurrency limit `{GPU_LIMIT}`, so two runs could share a GPU; "
                f"create it with `prefect gcl create {GPU_LIMIT} --limit 1`."
            ) from None
    # A server that is away for a moment must not end hours of training.
    with concurrency(GPU_LIMIT, occupy=1, strict=True, raise_on_lease_renewal_failure=False):
        yield
