"""How well SAEs of every objective reconstruct at equal L0, beside SAELens' of the same objective and tokens.

On ShapesCLIP's activations of the shapes world, and of crops of the photographs that come with scikit-image and
scikit-learn. SAELens comes with `uv run --with-requirements benchmarks/peers.txt python -m benchmarks.quality`.

FVU at an L0 is interpolated between SAEs of several k, or coefficients. Dead latents are also measured on SAEs of
64 latents per channel. On the shapes world with one object nearly every SAE keeps all of the zero-shot accuracy. So
what an SAE keeps is measured on images of two objects: the share of images whose two colours have the two largest
logits.

`--choose` measures the settings among which those of the table were chosen, the same number for each library, on
images that the table does not use. With `--points FILE` each SAE that was measured is noted in FILE, and one that is
noted there is not trained again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from benchmarks.quality.bench import KINDS, OURS, PEER, STARTS, Bench, Measured, Point
from benchmarks.quality.table import table
from benchmarks.quality.worlds import TWO_OBJECTS, World, dataset_of, inputs_of
from benchmarks.report import parser, report
from patchsae.storage.store import Store

N_LATENTS, N_WIDE = 16 * 128, 64 * 128
LRS = (4e-3, 1e-2)
# Chosen by TopK's FVU on the images for choosing, where rates of 4e-3 and 1e-2 were tried.
LR, PEER_LR, WIDE_LR = 1e-2, 4e-3, 4e-3
# SAELens' default, and the length our rows have with `live_latents`.
PEER_STARTS = ("0.1", "1.0")


def choices(world: World, kind: str, n_steps: int) -> Iterator[Point]:
    """The settings that the table's were chosen among, at a middle sparsity."""
    for library, starts in ((OURS, STARTS), (PEER, PEER_STARTS)):
        values = KINDS[kind].ours if library == OURS else KINDS[kind].theirs
        for start in starts:
            for lr in LRS:
                sparsity = values[len(values) // 2]
                yield Point(world, library, kind, sparsity, start, lr, N_LATENTS, 0, n_steps, "tune")


def reported(world: World, kind: str, n_steps: int, n_seeds: int, is_wide: bool) -> Iterator[Point]:
    """The SAEs of the table: of 16 latents per channel at several sparsities, or of 64 at one."""
    of_kind = KINDS[kind]
    for seed in range(n_seeds):
        for library, starts, lr, values in (
            (OURS, STARTS, LR, of_kind.ours),
            (PEER, PEER_STARTS[:1], PEER_LR, of_kind.theirs),
        ):
            # The start of `relu_l1` is the paper's, which has no such scale.
            for start in starts[:1] if kind == "relu_l1" else starts:
                if is_wide and library == OURS:
                    yield Point(world, library, kind, of_kind.at_64x, start, WIDE_LR, N_WIDE, seed, n_steps)
                for sparsity in () if is_wide else values:
                    yield Point(world, library, kind, sparsity, start, lr, N_LATENTS, seed, n_steps)


def read_points(path: Path | None) -> dict[Point, Measured]:
    """The SAEs that are noted in a file. A last line that was cut off by a kill is left out."""
    found: dict[Point, Measured] = {}
    for line in path.read_text().splitlines() if path and path.exists() else ():
        try:
            noted = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[Point(**noted["point"])] = Measured(**noted["measured"])
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=600)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    options.add_argument("--on", nargs="*", default=get_args(World), choices=get_args(World))
    options.add_argument("--libraries", nargs="*", default=[OURS, PEER], choices=[OURS, PEER])
    options.add_argument("--width", nargs="*", type=int, default=[16, 64], choices=[16, 64], metavar="N")
    options.add_argument("--choose", action="store_true", help="measure the settings to choose among")
    options.add_argument("--points", type=Path, metavar="FILE", help="note each SAE here and do none again")
    arguments = options.parse_args()
    wanted = [
        point
        for kind in arguments.kinds
        for world in arguments.on
        for point in (
            choices(world, kind, arguments.steps)
            if arguments.choose
            else (
                p
                for width in arguments.width
                for p in reported(world, kind, arguments.steps, arguments.seeds, width == 64)
            )
        )
        if point.library in arguments.libraries
    ]
    # All objectives with one seed come before any with two, so that a run that ends early has something of each.
    wanted.sort(key=lambda point: point.seed)
    noted = read_points(arguments.points)
    folder = Path(tempfile.mkdtemp(prefix="patchsae-quality-"))
    benches: dict[str, Bench] = {}
    try:
        for point in wanted:
            if point in noted:
                continue
            if point.world not in benches:
                store = Store(folder / "store")
                backbone, inputs = inputs_of(store, dataset_of(point.world, folder), zero_shot=False)
                two = inputs_of(store, TWO_OBJECTS, zero_shot=True)[1] if point.world == "shapes" else None
                benches[point.world] = Bench(point.world, backbone, inputs, folder / "scratch", two)
            noted[point] = benches[point.world].measure(point)
            print(point, noted[point], flush=True)
            if arguments.points:
                with arguments.points.open("a") as file:
                    line = {"point": asdict(point), "measured": asdict(noted[point])}
                    file.write(json.dumps(line) + "\n")
    finally:
        shutil.rmtree(folder)
    if not arguments.choose:
        title = f"quality after {arguments.steps} steps, {N_LATENTS:,} latents"
        report(title, table({point: noted[point] for point in wanted}, N_LATENTS), arguments.json)


if __name__ == "__main__":
    main()
