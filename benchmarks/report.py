"""What every benchmark shares: `--json FILE`, the table it prints, and a median of timings."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from rich.console import Console
from rich.table import Table


class Measurement(TypedDict):
    """`target` is the least (or, for seconds and bytes, the most) that is aimed at; None where there is no aim."""

    value: float
    target: float | None
    unit: str


Measurements = dict[str, Measurement]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options of a benchmark; add its sizes to it."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    return options


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Median wall-clock seconds of a call, after one that warms up."""
    function()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def report(title: str, measurements: Measurements, path: Path | None) -> None:
    """Prints the results as a table and writes them as `{name: {value, target, unit}}`."""
    table = Table(title=title)
    for column in ("what", "value", "target", "unit"):
        table.add_column(column, justify="left" if column in ("what", "unit") else "right")
    for name, found in measurements.items():
        target = "" if found["target"] is None else f"{found['target']:,.6g}"
        table.add_row(name, f"{found['value']:,.4g}", target, found["unit"])
    Console(width=110).print(table)
    if path is not None:
        path.write_text(json.dumps(measurements, indent=1))
