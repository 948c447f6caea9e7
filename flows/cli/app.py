"""The commands of `patchsae`. Each imports heavy modules only when it is called, so that help is instant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from patchsae.flows.cli import exchange as exchange_commands
from patchsae.flows.cli.commands import Commands
from patchsae.flows.cli.options import (
    ExperimentArgument,
    JsonOption,
    OnlyOption,
    RecordOption,
    RerunOption,
    SetOption,
    StoreOption,
    with_resources,
)
from patchsae.storage.errors import UserError

if TYPE_CHECKING:
    from patchsae.storage.store import Store


app = typer.Typer(
    name="patchsae",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Sparse autoencoders on CLIP patch activations, from images to masking results.

An *experiment* (the name of a preset, or a YAML file) lists datasets, backbones, SAEs and evaluations.
*Stages* (index, weights, extract, train, statistics, masking, ...) compute them; `train/relu` is the stage
`train` of the SAE `relu`. Results are kept in a *store*, so that nothing is computed twice.

Start with `patchsae demo`; then `patchsae status`, and `patchsae query "SELECT * FROM masking"`.""",
)


def _open(uri: str) -> Store:
    from patchsae.storage.store import Store

    return Store(uri)


@app.command()
def demo(store: StoreOption = "./store") -> None:
    """Run the bundled demo, from images to a table of results, in a few minutes on a CPU.

    The demo downloads nothing: a small CLIP and a world of rendered shapes come with the package. A second
    `demo` computes nothing and prints the results again.
    """
    from patchsae.flows.cli.demo import report
    from patchsae.flows.cli.run import launch
    from patchsae.pipeline.experiment.request import open_work

    launch("demo", [], store, [], [])
    typer.echo("\n" + report(open_work("demo", store=store)))


@app.command()
@with_resources
def run(
    experiment: ExperimentArgument,
    set_: SetOption = None,
    store: StoreOption = "./store",
    only: OnlyOption = None,
    rerun: RerunOption = None,
    resources: Any = None,
) -> None:
    """Run an experiment: compute what is not in the store yet, and resume what was interrupted.

    Examples:

    - `patchsae run demo --set train.l1_coefficient=1e-4`

    - `patchsae run my-photos.yaml --store /data/store --device cuda`

    - `patchsae run demo --rerun train/relu` builds one stage again, and the stages that use its result if that
      differs; add `--rerun statistics` to run that one in any case
    """
    from patchsae.flows.cli.run import launch

    launch(experiment, set_ or [], store, only or [], rerun or [], resources)


@app.command()
def plan(
    experiment: ExperimentArgument,
    set_: SetOption = None,
    store: StoreOption = "./store",
    only: OnlyOption = None,
    rerun: RerunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a run would do, and why, without running anything.

    The plan has, for every stage, its key, its state, the bytes it would write, and why it would run: the
    field or input that changed, or where it resumes. Exits with code 2 if the bytes do not fit on the disk.
    """
    from patchsae.flows.cli.show import plan_rows, plan_text
    from patchsae.pipeline.experiment.plan import check_space
    from patchsae.pipeline.experiment.request import open_work

    work = open_work(experiment, set_ or [], store, only or [], rerun or [])
    typer.echo(json.dumps(plan_rows(work), indent=1) if as_json else plan_text(work))
    check_space(work.store, work.to_write())


@app.command()
def status(
    store: StoreOption = "./store", experiment: RecordOption = None, as_json: JsonOption = False
) -> None:
    """List the artifacts of a store: stage, key, state, path, bytes, names, summary."""
    from patchsae.flows.cli.show import status_text
    from patchsae.pipeline.results.status import status_rows

    opened = _open(store)
    rows = status_rows(opened, experiment)
    typer.echo(json.dumps(rows, indent=1) if as_json else status_text(rows, opened))


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A query in Polars SQL.")],
    store: StoreOption = "./store",
    experiment: RecordOption = None,
    style: Annotated[
        Literal["table", "csv", "json", "parquet"], typer.Option("--format", help="Format of the rows.")
    ] = "table",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to this file.")] = None,
) -> None:
    """Query the tables of a store in SQL, and the table `artifacts`, which lists its artifacts.

    Examples:

    - `patchsae query "SELECT latent, frequency FROM latents WHERE NOT dead ORDER BY frequency DESC LIMIT 10"`

    - `patchsae query "SELECT sae, selection, k, accuracy FROM masking WHERE class IS NULL" --format csv`

    The columns dataset, backbone, sae and evaluation of a table name what a row is about; a table has those
    that apply to it. `patchsae tables` lists all tables and says what each column means.
    """
    from patchsae.flows.cli.show import write_rows
    from patchsae.pipeline.results.sql import execute

    write_rows(execute(_open(store), sql, experiment), style, output)


@app.command()
def tables(store: StoreOption = "./store", as_json: JsonOption = False) -> None:
    """List the tables of a store with a sentence per column."""
    from patchsae.flows.cli.text import table
    from patchsae.pipeline.results.sql import describe

    header = ("table", "column", "type", "description")
    rows = describe(_open(store))
    typer.echo(
        json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1)
        if as_json
        else table(header, rows)
    )


@app.command()
def pick(
    saes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SAE]...", help="Names; `*` stands for anything.  [default: all]"),
    ] = None,
    store: StoreOption = "./store",
    by: Annotated[
        Literal["fvu", "zero_shot_kept"], typer.Option("--by", help="The number by which the best is chosen.")
    ] = "fvu",
    max_l0: Annotated[
        float | None, typer.Option(metavar="N", help="Largest L0: latents above 0 per token.")
    ] = None,
    max_dead: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Largest share of dead latents, from 0 to 1.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the SAEs that no other SAE beats in both L0 and FVU, and pick the best SAE within bounds.

    It reads the newest table `frontier` of the store, which an evaluation of kind `frontier` writes.

    Examples:

    - `patchsae pick --max-l0 32`

    - `patchsae pick 'sweep-topk*' --by zero_shot_kept --max-dead 0.05`
    """
    from patchsae.flows.cli.show import pick_json, pick_text
    from patchsae.pipeline.results.pick import best, candidates

    rows = candidates(_open(store), saes or [])
    chosen = best(rows, by, max_l0, max_dead)
    typer.echo(pick_json(rows, chosen) if as_json else pick_text(rows, chosen, by))


@app.command()
def verify(
    store: StoreOption = "./store",
    discard: Annotated[
        bool, typer.Option("--discard", help="Drop damaged parts, so that the next run computes them again.")
    ] = False,
) -> None:
    """Recompute the digest of every file of a store, and list the files that are damaged.

    Exits with code 1 if there are any, or if the store cannot be read, unless `--discard` drops them. What was made
    from a damaged artifact is dropped with it.
    """
    from patchsae.flows.cli.show import dropped_text
    from patchsae.pipeline.core.progress import ConsoleReporter
    from patchsae.pipeline.experiment.upkeep import drop_damaged
    from patchsae.pipeline.experiment.upkeep import verify as find_damaged

    opened = _open(store)
    try:
        found = find_damaged(opened, ConsoleReporter())
    except UserError as error:
        typer.echo(f"patchsae: {error}", err=True)
        raise typer.Exit(1) from None
    for sentence in found.sentences:
        typer.echo(sentence)
    if not found.sentences:
        typer.echo(f"{opened.root}: every file is what was written.")
    elif discard:
        dropped = drop_damaged(opened, found)
        typer.echo(dropped_text(dropped))
        if dropped.left:
            raise typer.Exit(1)
    else:
        typer.echo("`patchsae verify --discard` drops what is damaged, so that the next run restores it.")
        raise typer.Exit(1)


@app.command()
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
    version of the experiment had that name. A record protects the artifacts of its run, finished or not. An
    artifact that a process builds or reads is never deleted, and a run that goes on is never forgotten.
    """
    from patchsae.flows.cli.text import table
    from patchsae.pipeline.core.text import size
    from patchsae.pipeline.experiment.upkeep import Unneeded, delete_unneeded, unneeded

    opened = _open(store)
    for name in forget or []:
        opened.records.forget(name)
    busy: list[Unneeded] = []
    if delete:
        items, busy = delete_unneeded(opened)
    else:
        items = unneeded(opened)
    if items:
        rows = [[i.artifact.stage, i.artifact.key[:16], i.state, size(i.n_bytes)] for i in items]
        typer.echo(table(("stage", "key", "state", "bytes"), rows, right=("bytes",)) + "\n")
    total = size(sum(item.n_bytes for item in items))
    typer.echo(
        f"{len(items)} artifacts, {total}"
        + (
            ", deleted."
            if delete
            else "; `patchsae gc --delete` deletes them."
            if items
            else ": nothing to delete."
        )
    )
    earlier = sorted(opened.records.all().keys() - opened.records.current().keys())
    if earlier:
        names = ", ".join(earlier)
        typer.echo(f"Kept for earlier versions of experiments: {names}; `gc --forget NAME` gives one up.")
    for item in busy:
        typer.echo(
            f"{item.artifact.stage} {item.artifact.key[:16]}: left alone, a process builds or reads it."
        )


for command in (exchange_commands.export, exchange_commands.import_, exchange_commands.visaebench):
    app.command(command.__name__.strip("_"))(command)


if __name__ == "__main__":
    app()
