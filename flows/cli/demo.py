"""The report that `patchsae demo` prints at its end: the quality of its SAE, masking results, and folders."""

from __future__ import annotations

import polars as pl

from patchsae.flows.cli.text import table
from patchsae.pipeline.experiment.request import Work
from patchsae.storage.artifacts import Artifact

_SMALL_KS = (1, 2, 5, 10, 50)


def _artifact(work: Work, address: str) -> Artifact:
    item = work.planned[address]
    assert item.key is not None
    return work.store.at(item.node.stage.name, item.key)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def report(work: Work) -> str:
    """The report on a finished demo, as text."""
    sae = _artifact(work, "reconstruction/reconstruction").manifest.summary
    masking = _artifact(work, "masking/masking").scan("masking").filter(pl.col("class").is_null()).collect()
    plain = {row["mode"]: row for row in masking.filter(selection="none").iter_rows(named=True)}
    numbers = [
        [
            "zero-shot accuracy",
            _percent(plain["original"]["accuracy"]),
            f"{plain['original']['n']:,} test images",
        ],
        ["... through the SAE", _percent(plain["reconstruction"]["accuracy"]), "activations replaced"],
        ["explained variance", _percent(float(sae["explained_variance"] or 0)), "centred, test images"],
        ["L0", f"{float(sae['l0'] or 0):.1f}", f"of {sae['n_latents']:,} latents, per token"],
        ["dead latents", _percent(float(sae["dead_fraction"] or 0)), "never active there"],
    ]
    paths = [[address, str(_artifact(work, address).path)] for address in work.planned]
    return "\n\n".join(
        (
            table(("", "", ""), numbers),
            "Accuracy with k latents switched off: the class's own (chosen on the train split), or random ones.",
            table(*_sweep(masking), right=[str(k) for k in _SMALL_KS]),
            "Where it is:\n" + table(("stage", "folder"), paths),
        )
    )


def _sweep(masking: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The header and rows of the table of accuracy by k, averaged over seeds."""
    off = (
        masking.filter(pl.col("mode") == "off", pl.col("k").is_in(_SMALL_KS))
        .group_by("selection", "k")
        .agg(pl.col("accuracy").mean())
        .sort("k")
    )
    ks = off["k"].unique().sort().to_list()
    rows = [
        [
            f"{selection} latents off",
            *(_percent(accuracy) for accuracy in off.filter(selection=selection)["accuracy"]),
        ]
        for selection in ("class", "random")
    ]
    return ["k", *map(str, ks)], rows
