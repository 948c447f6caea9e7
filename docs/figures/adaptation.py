"""Draws docs/figures/adaptation.png: what three adapters do to six tasks of the bundled world.

    uv run patchsae run adaptation
    uv run --with matplotlib python docs/figures/adaptation.py [STORE]

Means over three seeds, with 95 % intervals over images and seeds, from the table `adaptation_seeds`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import polars as pl

from patchsae.pipeline.results.tables import Catalog
from patchsae.storage.store import Store

TASKS = {
    "colours": "colours\n(pretraining)",
    "inverted": "inverted\n(shifted style)",
    "outlined": "outlined\n(shifted style)",
    "new-shapes": "new shapes\n(withheld)",
    "new-textures": "new textures\n(withheld)",
    "digits": "digits\n(no word, no image)",
}
METHODS = {"maple": "#0072b2", "lora": "#e69f00", "fine_tune": "#009e73"}
"""Colours that the colour-blind tell apart."""
ROWS = (
    ("accuracy_after", "accuracy, classes\nit learned from", True),
    ("accuracy_after", "accuracy,\nother classes", False),
    ("off_diagonal", "latents per class\noff the diagonal", True),
    ("change_explained", "share of the change\nthat the SAE shows", True),
)
DPI = 110
TARGET = Path(__file__).with_name("adaptation.png")


def points(rows: pl.DataFrame, quantity: str, task: str, method: str, is_own: bool) -> dict[str, float]:
    """Mean and interval of a quantity on the half that was learned from, or on the other one."""
    mine = rows.filter(pl.col("dataset") == task, pl.col("kind") == method, pl.col("classes") != "all")
    own = pl.col("classes") == pl.col("trained_on")
    mine = mine.filter(own if is_own else ~own)
    if quantity == "off_diagonal":
        both = mine.filter(pl.col("quantity").is_in(["high_to_low_per_class", "low_to_high_per_class"]))
        return {name: float(both[name].sum()) for name in ("mean", "ci_low", "ci_high")}
    [found] = mine.filter(pl.col("quantity") == quantity).iter_rows(named=True)
    return found


def main() -> None:
    store = Store(sys.argv[1] if len(sys.argv) > 1 else "store")
    rows = Catalog(store, "adaptation").scan("adaptation_seeds").collect()
    rows = rows.with_columns(pl.col("dataset", "evaluation").cast(pl.String))
    # The evaluations for masking are of one seed.
    rows = rows.filter(~pl.col("evaluation").str.starts_with("masked"))
    figure, panels = plt.subplots(len(ROWS), 1, figsize=(9, 9), sharex=True, constrained_layout=True)
    for axes, (quantity, label, is_own) in zip(panels, ROWS, strict=True):
        for x, task in enumerate(TASKS):
            if quantity == "accuracy_after":
                before = points(rows, "accuracy_before", task, "maple", is_own)["mean"]
                axes.hlines(before, x - 0.35, x + 0.35, color="0.55", linewidth=2)
            for i, (method, colour) in enumerate(METHODS.items()):
                found = points(rows, quantity, task, method, is_own)
                low, high = found["mean"] - found["ci_low"], found["ci_high"] - found["mean"]
                axes.errorbar(
                    x + 0.2 * (i - 1), found["mean"], [[max(0, low)], [max(0, high)]], fmt="o", color=colour
                )
        axes.set_ylabel(label)
        axes.grid(axis="y", color="0.9")
        if quantity == "accuracy_after":
            axes.set_ylim(-0.03, 1.03)
        elif quantity == "change_explained":
            axes.axhline(0, color="0.6", linewidth=1)
            axes.set_ylim(-1.05, 1.05)
        else:
            axes.set_ylim(bottom=0)
    panels[-1].set_xticks(range(len(TASKS)), list(TASKS.values()))
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=c, label=m) for m, c in METHODS.items()]
    handles.append(plt.Line2D([], [], color="0.55", linewidth=2, label="before adaptation"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(TARGET, dpi=DPI)
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
