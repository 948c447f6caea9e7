"""The report that `patchsae demo` prints at its end: the quality of its SAE, masking results, and folders."""

from __future__ import annotations

import polars as pl

from patchsae.flows.cli.text import table
from patchsae.pipeline.experiment.request import Work
from patchsae.storage.artifacts import Artifact
from patchsae.storage.manifest import Summary

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
    paths = [[address, str(_artifact(work, address).path)] for address in work.planned]
    return "\n\n".join(
        (
            table(("", "", ""), [*_accuracies(work, masking), *_quality(sae)]),
            "What is left of each attribute with k latents switched off: the k most active in the image's shape "
            "(class),\nthe k most active there and little in other shapes (selective), or k random ones.",
            table(*_sweep(masking), right=[str(k) for k in _SMALL_KS]),
            "Where it is:\n" + table(("stage", "folder"), paths),
        )
    )


def _accuracies(work: Work, masking: pl.DataFrame) -> list[list[str]]:
    """What the zero-shot classifier finds, with the activations as they are and through the SAE."""
    plain = {row["mode"]: row for row in masking.filter(selection="none").iter_rows(named=True)}
    two = _artifact(work, "reconstruction/two-objects").manifest.summary
    return [
        [
            "shape of one object",
            _percent(plain["original"]["accuracy"]),
            f"{plain['original']['n']:,} test images",
        ],
        ["... through the SAE", _percent(plain["reconstruction"]["accuracy"]), "every activation replaced"],
        [
            "colours of two objects",
            _percent(float(two["set_accuracy_original"] or 0)),
            f"{two['n_images']:,} images; right if both are on top",
        ],
        [
            "... through the SAE",
            _percent(float(two["set_accuracy_reconstruction"] or 0)),
            f"KL divergence from the original {float(two['kl_reconstruction'] or 0):.2f}",
        ],
    ]


def _quality(sae: Summary) -> list[list[str]]:
    return [
        ["explained variance", _percent(float(sae["explained_variance"] or 0)), "centred, test images"],
        ["L0", f"{float(sae['l0'] or 0):.1f}", f"of {sae['n_latents']:,} latents, per token"],
        ["dead latents", _percent(float(sae["dead_fraction"] or 0)), "never active there"],
    ]


def _sweep(masking: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The header and rows of the table of accuracy by k, averaged over seeds."""
    off = masking.filter(pl.col("mode") == "off", pl.col("k").is_in(_SMALL_KS)).sort("k")
    ks = off["k"].unique().sort().to_list()

    def row(name: str, selection: str, column: str) -> list[str]:
        means = off.filter(selection=selection).group_by("k").agg(pl.col(column).mean()).sort("k")
        return [name, *map(_percent, means[column])]

    return ["k", *map(str, ks)], [
        row("class latents off: shape", "class", "accuracy"),
        *(row(f"    {name}", "class", f"accuracy_{name}") for name in ("colour", "texture", "background")),
        row("selective latents off: shape", "class_selective", "accuracy"),
        row("random latents off: shape", "random", "accuracy"),
    ]
