"""What `patchsae run` does: plan, and start Prefect only if something is to be done."""

from __future__ import annotations

import os
from collections.abc import Sequence

import typer

from flows.request import check_can_run, open_work
from flows.resources import Resources, check_resources
from storage.atomic import explaining_full_disk

# The command line shows its own bars, and a failure as the exception it is; a deployment keeps Prefect's log.
_QUIET = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}


def launch(
    experiment: str,
    overrides: Sequence[str],
    store: str,
    only: Sequence[str],
    rerun: Sequence[str],
    resources: Resources | None = None,
) -> None:
    """Runs what is missing of an experiment. Raises UserError if it cannot be run."""
    work = open_work(experiment, overrides, store, only, rerun)
    to_do = work.to_do()
    if not to_do:
        typer.echo(f"Nothing to do: all {len(work.wanted)} stages of {work.record} are in {work.store.root}.")
        return
    check_can_run(work)
    resources = resources or Resources()
    check_resources(resources)
    typer.echo(
        f"{work.record}: {len(to_do)} of {len(work.wanted)} stages to do ({', '.join(to_do)}) in {work.store.root}"
    )
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from flows.temporary_server import server_for_a_run

    with explaining_full_disk(work.store.root), server_for_a_run():
        from flows.experiment import experiment as experiment_flow

        experiment_flow(
            experiment=experiment,
            overrides=list(overrides),
            store=str(work.store.root),
            only=list(only),
            rerun=list(rerun),
            resources=resources,
        )
    typer.echo(f"Done. `patchsae status --store {store}` lists what there is.")
