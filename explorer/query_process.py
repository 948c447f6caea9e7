"""The process that runs SQL: `python -m patchsae.explorer.query_process STORE PID`, which `queries.py` starts and ends.

It reads one request per line, as JSON, and answers each with a line of JSON and, for a download, the bytes that the
line announces. Polars cannot be interrupted, so that only the end of a process ends a query.
"""

from __future__ import annotations

import io
import os
import select
import sys
import threading
import time
import warnings
from typing import Any, BinaryIO

import orjson
import polars as pl

from patchsae.pipeline.results.sql import execute_with, without_bytes
from patchsae.storage.errors import StoreWarning, UserError
from patchsae.storage.store import Store

_IDLE_SECONDS = 120
_WIDE = (pl.Int128, pl.Decimal)


def main(root: str, server: int, requests: io.FileIO, replies: BinaryIO) -> None:
    """Answers requests until there are no more, or none for two minutes. `server` is the process that asks."""
    os.nice(5)
    threading.Thread(target=_end_with, args=(server,), daemon=True).start()
    store = Store(root)
    while select.select([requests], [], [], _IDLE_SECONDS)[0]:
        line = requests.readline()
        if not line:
            return
        header, payload = _answer(store, orjson.loads(line))
        replies.write(orjson.dumps({**header, "bytes": len(payload)}, default=str) + b"\n" + payload)
        replies.flush()


def _end_with(server: int) -> None:
    """Ends this process when its server has gone, which may happen during a query."""
    while os.getppid() == server:
        time.sleep(1)
    os._exit(1)


def _answer(store: Store, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    most, style = request["most_rows"], request["style"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StoreWarning)
        try:
            n_rows, frame = execute_with(
                store, request["query"], request["experiment"], lambda found: _some(found, most)
            )
            payload = b"" if style == "json" else _file(frame, style)
        except UserError as error:
            return {"error": str(error)}, b""
        except pl.exceptions.PolarsError as error:
            return {"error": f"query: {str(error).splitlines()[0]}"}, b""
    found = [str(one.message) for one in caught if issubclass(one.category, StoreWarning)]
    header: dict[str, Any] = {"n_rows": n_rows, "truncated": n_rows > len(frame), "warnings": found}
    if style == "json":
        header |= {
            "columns": frame.columns,
            "types": [str(kind) for kind in frame.dtypes],
            "rows": without_bytes(frame).with_columns(_as_text(frame)).rows(),
        }
    return header, payload


def _some(found: pl.LazyFrame, most: int) -> tuple[int, pl.DataFrame]:
    """The number of rows, and the first ones, without holding all of them."""
    n_rows, first = pl.collect_all([found.select(pl.len()), found.head(most)], engine="streaming")
    return n_rows.item(), first


def _as_text(frame: pl.DataFrame) -> list[pl.Expr]:
    """What JSON has no numbers for, as texts."""
    return [pl.col(name).cast(pl.String) for name, kind in frame.schema.items() if isinstance(kind, _WIDE)]


def _file(frame: pl.DataFrame, style: str) -> bytes:
    out = io.BytesIO()
    if style == "parquet":
        frame.write_parquet(out)
    else:
        nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
        texts = (
            pl.col(name).map_elements(lambda one: orjson.dumps(_plain(one)).decode(), return_dtype=pl.String)
            for name in nested
        )
        without_bytes(frame).with_columns(texts).write_csv(out)
    return out.getvalue()


def _plain(value: Any) -> Any:
    return value.to_list() if isinstance(value, pl.Series) else value


if __name__ == "__main__":
    # Without a buffer, so that `select` sees every request that was not read.
    with open(0, "rb", buffering=0) as asked:
        main(sys.argv[1], int(sys.argv[2]), asked, sys.stdout.buffer)
