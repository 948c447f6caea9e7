"""What comparing files with their digests costs: opening an SAE, and querying tables, with and without it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import load

from benchmarks.report import Measurement, parser, report, seconds
from patchsae.pipeline.evaluations.statistics.tables import CLASS_LATENTS
from patchsae.pipeline.saes.sae import WEIGHTS, Sae, load_sae, save_sae
from patchsae.storage import files
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.keys import artifact_key
from patchsae.storage.store import Store


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--latents", type=int, default=49_152, help="latents of the SAE, of 768 channels")
    options.add_argument("--rows", type=int, default=10_000_000, help="rows of the table `class_latents`")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        sae, table = _write_sae(store, arguments.latents), _write_table(store, arguments.rows)
        checked, plain = (
            seconds(lambda: load_sae(Artifact("train", sae.key, sae.path))),
            seconds(lambda: load((sae.path / WEIGHTS).read_bytes())),
        )
        queried, scanned = _first(table), seconds(lambda: _query(pl.scan_parquet(_file(table))))
    report(
        "comparing files with their digests",
        {
            "opening an SAE: checked / unchecked": Measurement(
                value=checked / plain, target=None, unit="ratio"
            ),
            "opening an SAE, checked": Measurement(value=checked, target=None, unit="s"),
            "first query of a table: checked / unchecked": Measurement(
                value=queried / scanned, target=None, unit="ratio"
            ),
            "first query of a table, checked": Measurement(value=queried, target=None, unit="s"),
        },
        arguments.json,
    )


def _first(table: Artifact) -> float:
    """Seconds of a query by a process that has not yet compared the table with its digest."""

    def query() -> None:
        files._sound.clear()
        _query(table.scan(CLASS_LATENTS.name))

    return seconds(query)


def _query(table: pl.LazyFrame) -> pl.DataFrame:
    return table.group_by("class").agg(pl.col("n_tokens").sum()).collect()


def _file(table: Artifact) -> Path:
    return table.table_files(CLASS_LATENTS.name)[0]


def _write_sae(store: Store, n_latents: int) -> Artifact:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(n_latents, 768, generator=generator)
    sae = Sae(W.T.contiguous(), torch.zeros(n_latents), W, torch.zeros(768))
    return _commit(store, "train", lambda out: save_sae(out, sae, {}))


def _write_table(store: Store, n_rows: int) -> Artifact:
    rng = np.random.default_rng(0)
    values = {
        column.name: rng.integers(0, 1000, n_rows).astype(column.type.to_pandas_dtype())
        for column in CLASS_LATENTS.columns
    }
    return _commit(store, "statistics", lambda out: out.write_table(CLASS_LATENTS, values))


def _commit(store: Store, stage: str, fill: Callable[[Builder], None]) -> Artifact:
    out = store.begin(store.at(stage, artifact_key(stage, 1, {}, {})))
    fill(out)
    return store.commit(out, 1, {}, {}, {}, {})


if __name__ == "__main__":
    main()
