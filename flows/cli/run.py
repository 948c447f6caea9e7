"""`launch`, which the commands `run` and `demo` call: it plans, and starts Prefect only if there is work."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence

from patchsae.flows.cli.bars import reporter
from patchsae.flows.cli.commands import failing
from patchsae.flows.cli.log_file import logged
from patchsae.flows.cli.screen import result, say, waiting
from patchsae.flows.cli.signals import Stopped, waking_at_interrupt
from patchsae.flows.reporting import reporting_to
from patchsae.flows.resources import ResourcesModel, check_resources
from patchsae.pipeline.core.resources import Resources
from patchsae.pipeline.experiment.forecast import is_certain
from patchsae.pipeline.experiment.remarks import remarks
from patchsae.pipeline.experiment.request import check_can_run, check_not_blocked, open_work
from patchsae.pipeline.experiment.run import remember, tidy
from patchsae.storage.atomic import explaining_full_disk

# Of the stages to do, the first so many are named; `patchsae plan` lists all.
_SHOWN = 12
# The command line shows progress bars and errors itself, so Prefect prints nothing. A worker prints its log.
_QUIET = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Raises `Stopped` for Prefect's own exception.

    Inside a flow Prefect handles SIGTERM. It sends the signal again when the flow has ended, to the handler
    of `stopped_by_signals`; but that one drops it if another signal came before.
    """
    from prefect.exceptions import TerminationSignal

    try:
        yield
    except TerminationSignal as error:
        raise Stopped(error.signal) from None


def launch(
    experiment: str,
    overrides: Sequence[str],
    store: str,
    only: Sequence[str],
    rerun: Sequence[str],
    resources: Resources | None = None,
    up_to: Sequence[str] = (),
) -> None:
    """Builds every artifact of an experiment that is not in the store. Raises UserError if it cannot."""
    resources = resources or Resources()
    check_resources(resources)
    waiting.on("planning")
    work = open_work(experiment, overrides, store, only, rerun, up_to)
    to_do = work.to_do()
    if not to_do:
        if work.store.is_writable():
            remember(work)
            tidy(work)
        for line in remarks(work):
            say(line)
        what = (
            f"all {len(work.wanted)} stages of {work.record} are"
            if len(work.wanted) > 1
            else f"{', '.join(work.wanted)} of {work.record} is"
        )
        result(f"Nothing to do: {what} in {work.store.root}.")
        return
    with failing():
        check_not_blocked(work)
    check_can_run(work)
    certain = [address for address, item in work.to_write().items() if is_certain(item)]
    n_others = len(to_do) - len(certain)
    first = ", ".join([*certain[:_SHOWN], *(["..."] if len(certain) > _SHOWN else [])])
    say(
        f"{work.record}: {len(certain)} of {len(work.wanted)} stages to do ({first}) in {work.store.root}"
        + (f", and {n_others} more if they find changes" if n_others else "")
    )
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    waiting.on("starting Prefect's server")
    from patchsae.flows.server import has_lasting_server, server_for_a_run

    with contextlib.ExitStack() as running:
        for each in (
            failing(),
            explaining_full_disk(work.store.root),
            server_for_a_run(),
            _termination_as_interrupt(),
            reporting_to(reporter()),
            logged(work.store, work.record, dataclasses.asdict(resources)),
        ):
            running.enter_context(each)
        from patchsae.flows.experiment import experiment as experiment_flow
        from patchsae.flows.run_log import log_to_server_only

        if has_lasting_server():
            log_to_server_only()
        waiting.on("starting the run")
        waking_at_interrupt()
        experiment_flow(
            experiment=experiment,
            overrides=list(overrides),
            store=str(work.store.root),
            only=list(only),
            rerun=list(rerun),
            up_to=list(up_to),
            resources=ResourcesModel(**dataclasses.asdict(resources)),
        )
    for line in remarks(work):
        say(line)
    result(f"Done. `patchsae status --store {store}` lists what there is.")
