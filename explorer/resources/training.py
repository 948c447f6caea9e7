"""`training`: the curves of an SAE, also while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from patchsae.explorer.errors import Absent
from patchsae.explorer.library import Library
from patchsae.explorer.view import SAE_STAGES
from patchsae.storage.manifest import KEY_DIGITS
from patchsae.storage.store import Store

_MOST_ROWS = 1000


def is_running(store: Store, stage: str, key: str) -> bool:
    """Whether a process builds the artifact at this moment."""
    try:
        return store.is_being_built(store.at(stage, key))
    except OSError:
        # The lock's file belongs to another user.
        return False


def training(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """The table `training` of an SAE, thinned to 1000 rows. Raises Absent if there is no such SAE or no table."""
    key = arguments["sae"]
    snapshot, store = library.snapshot(), library.store
    places = [one for stage in SAE_STAGES for one in snapshot.places(stage, key)]
    held = next((one for stage in SAE_STAGES if (one := snapshot.find(stage, key)) is not None), None)
    if not places and held is None:
        raise Absent(
            f"SAE {key}: is not in this store; it may have been deleted since. `#/` lists what there is."
        )
    stage = held.artifact.stage if held else places[0].node.stage
    rows: pl.DataFrame | None = None
    if held is not None and held.state == "committed":
        if held.artifact.table_files("training"):
            rows = library.table(held.artifact, "training")
    else:
        path = store.at(stage, key).path / "tables" / "training.parquet"
        rows = pl.read_parquet(path) if path.is_file() else None
    if rows is None:
        rows = pl.DataFrame()
    step = -(-len(rows) // (_MOST_ROWS - 1)) or 1
    last = rows.tail(1) if len(rows) and (len(rows) - 1) % step else rows.clear()
    thinned = pl.concat([rows.gather_every(step), last]).drop("artifact", strict=False)
    return {
        "sae": key[:KEY_DIGITS],
        "name": next((one.node.names.get("sae") for one in places), None) or key[:KEY_DIGITS],
        "running": is_running(store, stage, key),
        "columns": thinned.to_dict(as_series=False),
    }
