"""The commands that keep a store in order: `verify` and `gc`."""

from __future__ import annotations

from typing import Annotated

import typer

from patchsae.flows.cli.commands import FAILED, failing
from patchsae.flows.cli.options import StoreOption
from patchsae.flows.cli.screen import result, say


def verify(
    store: StoreOption = "./store",
    discard: Annotated[
        bool, typer.Option("--discard", help="Drop damaged parts, so that the next run computes them again.")
    ] = False,
) -> None:
    """Recompute the digest of every file of a store, and list the files that are damaged.

    Exits with code 1 if there are any, or if the store cannot be read, unless `--discard` drops them. What was made
    from a damaged artifact is dropped with it.

    Example: `patchsae verify --store /data/store --discard`
    """
    from patchsae.flows.cli.bars import reporter
    from patchsae.flows.cli.show import dropped_text
    from patchsae.pipeline.experiment.damage import drop_damaged
    from patchsae.pipeline.experiment.damage import verify as find_damaged
    from patchsae.storage.store import Store

    opened = Store(store)
    with failing():
        found = find_damaged(opened, reporter())
    for sentence in found.sentences:
        result(sentence)
    if not found.sentences:
        result(f"{opened.root}: every file is what was written.")
    elif discard:
        dropped = drop_damaged(opened, found)
        result(dropped_text(dropped))
        if dropped.left:
            raise typer.Exit(FAILED)
    else:
        say("`patchsae verify --discard` drops what is damaged, so that the next run restores it.")
        raise typer.Exit(FAILED)


def gc(
    store: StoreOption = "./store",
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the artifacts; without this they are only listed.")
    ] = False,
    forget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="First delete the record of this run (`status --json` has its name)."
        ),
    ] = None,
) -> None:
    """List or delete the artifacts that no preset and no recorded run needs, and what killed runs left behind.

    Every run is recorded under the name of its experiment, with a suffix if `--set` was used, or if an earlier
    version of the experiment had that name. A record protects the artifacts of its run, finished or not; those
    with nothing done yet need no protection. Unfinished ones that are kept are listed with what they have. An
    artifact that a process builds or reads is never deleted, and a run that goes on is never forgotten.

    Example: `patchsae gc --forget photos --delete`
    """
    from patchsae.flows.cli.bars import reporter
    from patchsae.flows.cli.text import table
    from patchsae.pipeline.core.text import count, size
    from patchsae.pipeline.experiment.unneeded import Unneeded, delete_unneeded, unfinished, unneeded
    from patchsae.storage.store import Store

    opened = Store(store)
    opened.check_readable()
    for name in forget or []:
        opened.records.forget(name)
    busy: list[Unneeded] = []
    if delete:
        items, busy = delete_unneeded(opened, reporter())
    else:
        items = unneeded(opened)
    if items:
        rows = [[i.artifact.stage, i.artifact.key[:16], i.state, size(i.n_bytes), i.why] for i in items]
        result(table(("stage", "key", "state", "bytes", "why"), rows, right=("bytes",)) + "\n")
    total = size(sum(item.n_bytes for item in items))
    result(
        f"{count(len(items), 'artifact')}, {total}"
        + (
            ", deleted."
            if delete
            else "; `patchsae gc --delete` deletes them."
            if items
            else ": nothing to delete."
        )
    )
    if kept := unfinished(opened):
        result(
            f"\n{size(sum(one.n_bytes for one in kept))} of unfinished artifacts are kept, since a run would go on with "
            "them; `gc --forget NAME` gives a run up:"
        )
        rows = [
            [k.artifact.stage, k.artifact.key[:16], size(k.n_bytes), k.done, ", ".join(k.names)] for k in kept
        ]
        result(table(("stage", "key", "bytes", "done", "run"), rows, right=("bytes",)) + "\n")
    earlier = sorted(opened.records.all().keys() - opened.records.current().keys())
    if earlier:
        names = ", ".join(earlier)
        result(f"Kept for earlier versions of experiments: {names}; `gc --forget NAME` gives one up.")
    for item in busy:
        result(f"{item.artifact.stage} {item.artifact.key[:16]}: left alone, a process builds or reads it.")
