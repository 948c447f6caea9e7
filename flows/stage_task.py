"""`run_stage`: the Prefect task that builds the artifact of a node, for the flows of experiments and stages.

The store decides whether an artifact is built; Prefect's cache only mirrors the store. The cache key of the
task is the artifact's key, and its cached result is a small reference, which `StoreView` makes from the
store. The caller sets `refresh_cache` if the artifact is to be built. So Prefect shows the task as `Cached`
exactly if the artifact was there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from prefect import Task, task
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext

from patchsae.flows.gpu_slot import gpu_slot
from patchsae.flows.result_storage import PLAIN_JSON, Reference, record_name
from patchsae.flows.run_log import logging_to_this_run
from patchsae.pipeline.core.text import number
from patchsae.storage.artifacts import Artifact


class Build:
    """The function that a task calls to build its artifact.

    Prefect copies the parameters of a task to the Dask workers of flows inside it. A copy of this object is
    empty, since those workers do not need it.
    """

    def __init__(self, call: Callable[[], Artifact] | None) -> None:
        self._call = call

    def __call__(self) -> Artifact:
        assert self._call is not None, "built where it was not meant to be"
        return self._call()

    def __reduce__(self) -> tuple[type[Build], tuple[None]]:
        return Build, (None,)


def cache_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """The stage and the key of the artifact, as Prefect's cache key."""
    return record_name(parameters["stage"], parameters["key"])


def is_environment(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether a failure may pass by itself, such as a lost mount. Only such failures are retried."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError)


@task(
    name="stage",
    cache_key_fn=cache_key,
    persist_result=True,
    result_serializer=PLAIN_JSON,
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=is_environment,
)
def run_stage(experiment: str, address: str, stage: str, key: str, device: str, build: Build) -> Reference:
    """Builds one artifact, and shows its summary as a table in Prefect."""
    with logging_to_this_run(), gpu_slot(stage, device):
        artifact = build()
    create_table_artifact(
        key=slug(f"{experiment}-{address}"),
        table=[{"name": name, "value": number(value)} for name, value in artifact.manifest.summary.items()],
        description=f"`{address}` of `{experiment}`: key `{key[:16]}`, at `{artifact.path}`",
    )
    return {"stage": stage, "key": key, "path": str(artifact.path)}


def slug(text: str) -> str:
    """`text` as a name that Prefect accepts for an artifact: lower-case letters, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
