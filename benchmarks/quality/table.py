"""The tables of the quality benchmark: FVU at equal L0, dead latents, both with their spread over seeds, and ranks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.quality.bench import OURS, PEER, Measured, Point
from benchmarks.report import Measurement, Measurements

L0S = (16, 32, 64)


def at_l0(saes: Sequence[Measured], l0: float) -> Measured | None:
    """What SAEs of one objective have at an L0, from the two nearest to it: log FVU and all else over log L0.

    None if the L0 is far from what they have, or if there is only one.
    """
    saes = sorted(saes, key=lambda sae: sae.l0)
    if len(saes) < 2 or not 0.8 * saes[0].l0 <= l0 <= 1.25 * saes[-1].l0:
        return None
    i = int(np.clip(np.searchsorted([sae.l0 for sae in saes], l0), 1, len(saes) - 1))
    low, high = saes[i - 1], saes[i]
    share = math.log(l0 / low.l0) / math.log(high.l0 / low.l0)

    def between(a: float, b: float) -> float:
        return (1 - share) * a + share * b

    def of_one(a: float, b: float) -> float:
        return float(np.clip(between(a, b), 0, 1))

    return Measured(
        l0=l0,
        fvu=math.exp(between(math.log(low.fvu), math.log(high.fvu))),
        dead=of_one(low.dead, high.dead),
        dead_train=of_one(low.dead_train, high.dead_train),
        kept=of_one(low.kept, high.kept),
        kl=max(0.0, between(low.kl, high.kl)),
    )


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (with n - 1) over seeds; the deviation of one value is NaN."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def table(found: Mapping[Point, Measured], n_latents: int) -> Measurements:
    """Rows of means over seeds, each with its spread, and SAELens' FVU over ours.

    The ratio's aim is 0.98: not more than 2 % behind.
    """
    curves: dict[tuple[str, str, str, str], dict[int, list[Measured]]] = defaultdict(
        lambda: defaultdict(list)
    )
    wide: dict[tuple[str, str, str, str], list[Measured]] = defaultdict(list)
    for point, measured in found.items():
        name = (point.world, point.kind, point.library, point.start)
        if point.n_latents > n_latents:
            wide[name].append(measured)
        else:
            curves[name][point.seed].append(measured)
    rows: Measurements = {}

    def add(name: str, values: Sequence[float], unit: str = "") -> float:
        mean, deviation = spread(values)
        rows[name] = Measurement(value=mean, target=None, unit=unit)
        if len(values) > 1:
            rows[f"{name}, spread of {len(values)} seeds"] = Measurement(
                value=deviation, target=None, unit=unit
            )
        return mean

    fvu: dict[tuple[str, str, str, str, int], float] = {}
    for (world, kind, library, start), by_seed in sorted(curves.items()):
        for l0 in L0S:
            there = [m for saes in by_seed.values() if (m := at_l0(saes, l0)) is not None]
            if not there:
                continue
            name = f"{world}: {kind} {library} {start}, L0 {l0}"
            fvu[world, kind, library, start, l0] = add(f"{name}: FVU", [m.fvu for m in there])
            add(f"{name}: dead", [m.dead for m in there])
            if not math.isnan(there[0].kept):
                add(f"{name}: two objects kept", [m.kept for m in there])
                add(f"{name}: two objects KL", [m.kl for m in there], "nats")
    for (world, kind, library, start, l0), ours in fvu.items():
        theirs = [v for (w, k, lib, _, n), v in fvu.items() if (w, k, lib, n) == (world, kind, PEER, l0)]
        if library == OURS and theirs:
            ratio = Measurement(value=min(theirs) / ours, target=0.98, unit="ratio")
            rows[f"{world}: {kind} {start}, L0 {l0}: SAELens' FVU / ours"] = ratio
    for (world, kind, library, start), saes in sorted(wide.items()):
        name = f"{world}: {kind} {library} {start}, 64 per channel"
        add(f"{name}: dead", [m.dead for m in saes])
        add(f"{name}: dead on training images", [m.dead_train for m in saes])
        add(f"{name}: FVU", [m.fvu for m in saes])
        add(f"{name}: L0", [m.l0 for m in saes])
    return rows | ranks(fvu)


def ranks(fvu: Mapping[tuple[str, str, str, str, int], float]) -> Measurements:
    """Our objectives in the order of their FVU, in the geometric mean over `L0S`: 1 is the best.

    Only objectives that reach every L0 are ranked.
    """
    rows: Measurements = {}
    of_ours = {(world, start) for world, _, library, start, _ in fvu if library == OURS}
    for world, start in sorted(of_ours):
        means = {}
        for kind in {kind for w, kind, library, s, _ in fvu if (w, library, s) == (world, OURS, start)}:
            values = [fvu.get((world, kind, OURS, start, l0)) for l0 in L0S]
            if all(values):
                means[kind] = float(np.exp(np.mean([math.log(v) for v in values if v])))
        for rank, kind in enumerate(sorted(means, key=lambda kind: means[kind]), 1):
            rows[f"{world}: {start}: rank of {kind}"] = Measurement(value=rank, target=None, unit="")
    return rows
