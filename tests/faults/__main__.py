"""`python -m tests.faults`: runs the campaign and prints what it found. Exits with 1 if there was a fault."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from patchsae.storage.store import Store
from tests.faults.crashes import ACTIONS, crashes
from tests.faults.damage import after_commit, before_commit
from tests.faults.kills import kills
from tests.faults.races import races
from tests.faults.world import Tally, World

CAMPAIGNS = ("damage", "crashes", "races", "kills")


def campaign(names: list[str], every: int, folder: Path) -> Iterator[Tally]:
    world = World.make(folder)
    if "crashes" in names:
        for action in ACTIONS:
            yield crashes(world, action, every)
    if "damage" in names:
        partial: list[Store] = []
        crashes(world, "run", every=max(5, every), keep=partial)
        yield before_commit(world, partial, every)
        yield after_commit(world, every)
    if "races" in names:
        yield races(world, every)
    if "kills" in names:
        yield kills(world, max(1, 40 // every))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="|".join(CAMPAIGNS), help="which campaigns (default: all)"
    )
    parser.add_argument("--every", type=int, default=1, help="make only every n-th try (default: all)")
    given = parser.parse_args()
    if unknown := set(given.names) - set(CAMPAIGNS):
        parser.error(f"no campaign {', '.join(sorted(unknown))}")
    n_faults = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for tally in campaign(given.names or list(CAMPAIGNS), given.every, Path(folder)):
            print(tally.row(), flush=True)
            for kind, done, seen in tally.faults:
                print(f"  {kind}: {done}\n    {seen.strip()}".replace(folder, "STORE"), flush=True)
            n_faults += len(tally.faults)
    return int(n_faults > 0)


if __name__ == "__main__":
    sys.exit(main())
