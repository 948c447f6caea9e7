"""The command line, `patchsae`. Nothing heavy is imported before a command needs it: help is instant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from flows import exchange_commands
from flows.options import (
    ExperimentArgument,
    JsonOption,
    OnlyOption,
    RerunOption,
    SetOption,
    StoreOption,
)
from storage.errors import UserError

if TYPE_CHECKING:
    from flows.upkeep import Unreachable
    from storage.artifacts import Store


class _Commands(TyperGroup):
    """Prints a UserError as one line and leaves with code 2; an interrupt is no traceback either."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"patchsae: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo(
                "patchsae: interrupted; what was finished is kept, the same command goes on from there.",
                err=True,
            )
            raise typer.Exit(130) from None


app = typer.Typer(
    name="patchsae",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Sparse autoencoders on CLIP patch activations, from images to masking results.

An *experiment* (a preset's name or a YAML file) says which datasets, backbones, SAEs and evaluations there
are. Each is worked on by *stages* (index, weights, extract, train, statistics, masking, ...); one stage of
one thing is addressed as `train/relu`. Results go to a *store*, where nothing is computed twice.

Start with `patchsae demo`; then `patchsae status`, and `patchsae query "SELECT * FROM masking"`.""",
)


def _open(uri: str) -> Store:
    from storage.artifacts import Store

    return Store(uri)


@app.command()
def demo(store: StoreOption = "./store") -> None:
    """Run the bundled demo, from images to a table of results, in a few minutes on a CPU.

    Needs no download: a small CLIP and a world of rendered shapes come with the package. A second `demo`
    finds everything done.
    """
    from flows.demo import report
    from flows.launch import launch
    from flows.request import open_work

    launch("demo", [], store, [], [])
    typer.echo("\n" + report(open_work("demo", store=store)))


@app.command()
def run(
    experiment: ExperimentArgument,
    set_: SetOption = None,
    store: StoreOption = "./store",
    only: OnlyOption = None,
    rerun: RerunOption = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="cpu, cuda, cuda:1.  [default: cuda where there is one]"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Processes that decode images.  [default: half the cores; 0, a thread, on a CPU]"
        ),
    ] = None,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Training writes a checkpoint this often.")
    ] = 60.0,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes (GPUs) of this machine that train an SAE together.")
    ] = 1,
    torchrun: Annotated[
        str,
        typer.Option(
            metavar="ARGUMENTS", help="torchrun's arguments where several machines train an SAE together."
        ),
    ] = "--standalone",
    members: Annotated[
        int, typer.Option(min=1, help="SAEs trained in one pass over the activations, at most.")
    ] = 8,
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="tensorboard|wandb",
            help="Write training metrics there too, beside the table `training`. May be repeated.",
        ),
    ] = None,
    dask: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Where parts of statistics and masking run: `local` (a process per core), `none` (in this "
            "process), or a Dask scheduler, `tcp://host:8786`.",
        ),
    ] = "local",
) -> None:
    """Run an experiment: what is in the store is kept, the rest is computed, an interrupted run goes on.

    Examples:

    - `patchsae run demo --set train.l1_coefficient=1e-4`

    - `patchsae run my-photos.yaml --store /data/store --device cuda`

    - `patchsae run demo --rerun train/relu` builds one stage again; what follows from it keeps its key and
      stays, so add `--rerun statistics` to compute that again too
    """
    from flows.launch import launch
    from flows.resources import Resources

    resources = Resources(
        device=device,
        workers=workers,
        checkpoint_seconds=checkpoint_seconds,
        processes=processes,
        torchrun=torchrun,
        members=members,
        log=tuple(log or ()),
        dask=dask,
    )
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
    """Show what a run would do, and why; run nothing.

    For every stage: its key, whether it is cached, to run, or resumes at which part, the field or input that
    changed, and the bytes it would write. Leaves with code 2 if they do not fit on the disk.
    """
    from flows.request import open_work
    from flows.show import plan_rows, plan_text
    from pipeline.plan import check_space

    work = open_work(experiment, set_ or [], store, only or [], rerun or [])
    typer.echo(json.dumps(plan_rows(work), indent=1) if as_json else plan_text(work))
    check_space(work.store, {address: work.planned[address] for address in work.wanted})


@app.command()
def status(store: StoreOption = "./store", as_json: JsonOption = False) -> None:
    """List the artifacts of a store: stage, key, state, path, bytes, summary."""
    from flows.show import status_rows, status_text

    opened = _open(store)
    rows = status_rows(opened)
    typer.echo(json.dumps(rows, indent=1) if as_json else status_text(rows, opened))


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A query in Polars SQL.")],
    store: StoreOption = "./store",
    style: Annotated[
        Literal["table", "csv", "json", "parquet"], typer.Option("--format", help="How rows are written.")
    ] = "table",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to a file.")] = None,
) -> None:
    """Ask the store in SQL: every table of every artifact, and `artifacts` for the store itself.

    Examples:

    - `patchsae query "SELECT latent, frequency FROM latents WHERE NOT dead ORDER BY frequency DESC LIMIT 10"`

    - `patchsae query "SELECT * FROM masking WHERE class IS NULL" --format csv`

    `patchsae tables` lists the tables and says what each column means.
    """
    from flows.sql import execute, write

    write(execute(_open(store), sql), style, output)


@app.command()
def tables(store: StoreOption = "./store", as_json: JsonOption = False) -> None:
    """List the tables of a store with a sentence per column."""
    from flows.show import table
    from flows.sql import describe

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
        Literal["fvu", "zero_shot_kept"], typer.Option("--by", help="What the best one is best at.")
    ] = "fvu",
    max_l0: Annotated[
        float | None, typer.Option(metavar="N", help="At most so many latents per token.")
    ] = None,
    max_dead: Annotated[
        float | None, typer.Option(metavar="SHARE", help="At most this share of dead latents, from 0 to 1.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which SAEs no other beats in both L0 and FVU, and pick the best of all under a bound.

    Reads the newest table `frontier` of the store, which an evaluation of kind `frontier` makes.

    Examples:

    - `patchsae pick --max-l0 32`

    - `patchsae pick 'sweep-topk*' --by zero_shot_kept --max-dead 0.05`
    """
    from flows import pick as picking

    rows = picking.candidates(_open(store), saes or [])
    chosen = picking.best(rows, by, max_l0, max_dead)
    typer.echo(picking.as_json(rows, chosen) if as_json else picking.report(rows, chosen, by))


@app.command()
def verify(
    store: StoreOption = "./store",
    discard: Annotated[
        bool, typer.Option("--discard", help="Forget the damaged parts; the next run computes those again.")
    ] = False,
) -> None:
    """Recompute the digest of every file and name those that are not what was written.

    Leaves with code 1 if there are any, unless `--discard` took care of them.
    """
    from flows.upkeep import drop_damaged
    from flows.upkeep import verify as find_damaged
    from pipeline.progress import ConsoleReporter

    opened = _open(store)
    damages = find_damaged(opened, ConsoleReporter())
    for damage in damages:
        typer.echo(damage.sentence)
    if not damages:
        typer.echo(f"{opened.root}: every file is what was written.")
    elif discard:
        drop_damaged(opened, damages)
        typer.echo(
            f"{len(damages)} artifacts dropped what is damaged; run the experiment again to restore it."
        )
    else:
        typer.echo("`patchsae verify --discard` drops what is damaged, so that the next run restores it.")
        raise typer.Exit(1)


@app.command()
def gc(
    store: StoreOption = "./store",
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete them; without this they are listed.")
    ] = False,
    forget: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="First drop the record of this run (see `status --json`: names)."),
    ] = None,
) -> None:
    """List, or delete, the artifacts that no preset and no recorded run leads to.

    Every run is recorded under its experiment's name (with a suffix where `--set` was used); the record keeps
    what it reached, finished or not. What a process is building right now is never deleted.
    """
    from flows.show import table
    from flows.upkeep import delete as delete_artifacts
    from flows.upkeep import unreachable
    from pipeline.progress import size

    opened = _open(store)
    for name in forget or []:
        opened.forget_experiment(name)
    items = unreachable(opened)
    busy: list[Unreachable] = []
    if delete:
        items, busy = delete_artifacts(opened, items)
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
    for item in busy:
        typer.echo(f"{item.artifact.stage} {item.artifact.key[:16]}: left alone, a process is building it.")


for command in (exchange_commands.export, exchange_commands.import_, exchange_commands.visaebench):
    app.command(command.__name__.strip("_"))(command)


if __name__ == "__main__":
    app()
