"""The commands that have to do with an experiment: `init`, `demo`, `plan` and `run`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from patchsae.flows.cli.commands import FAILED
from patchsae.flows.cli.explore import show
from patchsae.flows.cli.options import (
    ExperimentArgument,
    ForceOption,
    JsonOption,
    OnlyOption,
    RerunOption,
    SetOption,
    StoreOption,
    UpToOption,
    with_resources,
)
from patchsae.flows.cli.screen import result, say, waiting
from patchsae.storage.errors import UserError


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The images: a folder per class, or all in one folder.")
    ] = Path(),
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The YAML file to write.  [default: the folder's name, here]"),
    ] = None,
    backbone: Annotated[
        Literal["open_clip", "shapesclip"],
        typer.Option(help="`shapesclip` comes with patchsae and needs no download; it knows shapes only."),
    ] = "open_clip",
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A model of open_clip, as ViT-L-14.  [default: ViT-B-16-quickgelu]"
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights of that model, in place of a download. Needs --model."),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write a first experiment file for a folder of images, with settings that suit their number.

    Examples:

    - `patchsae init ~/photos`

    - `patchsae init ~/photos --model ViT-B-16 --checkpoint weights.safetensors --output photos.yaml`
    """
    from patchsae.pipeline.experiment.starter import backbone_of, starter
    from patchsae.storage.files import expanded

    waiting.on("looking at the images")
    named = expanded(folder).absolute().name or "images"
    target = expanded(output or f"{named}.yaml")
    made = starter(folder, target, *backbone_of(backbone, model, str(checkpoint) if checkpoint else None))
    paths = {target.parent / name: text for name, text in made.files.items()}
    there = next((path for path in paths if path.exists()), None)
    if there is not None and not force:
        raise UserError(
            f"{there}: is there already; name another file with --output, or replace it with --force."
        )
    try:
        for path, text in paths.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be written ({error.strerror}); name another with --output."
        ) from None
    result("\n".join([*made.seen, *(f"Wrote {path}." for path in paths)]))
    say(f"Next: `patchsae plan {shlex.quote(str(target))}` shows what a run would do.")


def demo(
    store: StoreOption = "./store",
    explore: Annotated[
        bool,
        typer.Option("--explore", help="Then open the results in the browser, as `patchsae explore` does."),
    ] = False,
) -> None:
    """Run the bundled demo, from images to a table of results, in a few minutes on a CPU.

    The demo downloads nothing: a small CLIP and a world of rendered shapes come with the package. A second
    `demo` computes nothing and prints the results again.

    Examples:

    - `patchsae demo --store /tmp/demo`

    - `patchsae demo --explore`
    """
    waiting.on("loading patchsae", at_once=True)
    from patchsae.flows.cli.demo import report
    from patchsae.flows.cli.run import launch
    from patchsae.pipeline.experiment.request import open_work

    launch("demo", [], store, [], [])
    result(report(open_work("demo", store=store)))
    if explore:
        show(store)
    else:
        result(f"\nSee it in the browser: `patchsae explore --store {shlex.quote(store)}`")


@with_resources
def run(
    experiment: ExperimentArgument,
    set_: SetOption = None,
    store: StoreOption = "./store",
    only: OnlyOption = None,
    up_to: UpToOption = None,
    rerun: RerunOption = None,
    resources: Any = None,
) -> None:
    """Run an experiment: compute what is not in the store yet, and resume what was interrupted.

    Examples:

    - `patchsae run demo --set train.l1_coefficient=1e-4`

    - `patchsae run my-photos.yaml --store /data/store --device cuda`

    - `patchsae run demo --up-to train/relu` runs one stage and what it needs

    - `patchsae run demo --rerun train/relu` builds one stage again, and the stages that use its result if that
      differs; add `--rerun statistics` to run that one in any case
    """
    waiting.on("loading patchsae", at_once=True)
    from patchsae.flows.cli.run import launch

    launch(experiment, set_ or [], store, only or [], rerun or [], resources, up_to or [])


def plan(
    experiment: ExperimentArgument,
    set_: SetOption = None,
    store: StoreOption = "./store",
    only: OnlyOption = None,
    up_to: UpToOption = None,
    rerun: RerunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a run would do, and why, without running anything.

    The plan has, for every stage, its key, its state, the bytes and the time it would take, and why it would run:
    the field, file or input that changed, or where it resumes. A stage that is *perhaps* to run does so only if
    the images or weights, which are looked at again, turn out to have changed. A stage that a run would refuse is
    *blocked*, and the reason stands below the table.

    Times are those of this machine, whose speed is measured once, in a few seconds, and remembered. Exits with
    code 1 if a stage is blocked, and with code 2 if a run would be refused: if the bytes do not fit on the disk,
    or if `--only` leaves out a stage that is needed and not in the store.

    Example: `patchsae plan photos.yaml --set train.k=16`
    """
    waiting.on("loading patchsae", at_once=True)
    from patchsae.flows.cli.show import plan_rows, plan_text
    from patchsae.pipeline.core.machine import Machine, figures_file
    from patchsae.pipeline.experiment.forecast import check_space
    from patchsae.pipeline.experiment.remarks import remarks
    from patchsae.pipeline.experiment.request import causes, check_inputs, open_work

    waiting.on("planning")
    work = open_work(experiment, set_ or [], store, only or [], rerun or [], up_to or [])
    waiting.on("measuring this machine")
    machine = Machine(figures_file())
    result(json.dumps(plan_rows(work, machine), indent=1) if as_json else plan_text(work, machine))
    for line in remarks(work):
        say(line)
    if causes(work, work.wanted):
        raise typer.Exit(FAILED)
    check_inputs(work)
    check_space(work.store, work.to_write())
