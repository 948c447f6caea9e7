"""What a plan will take: bytes, the most of them at once, and seconds. `patchsae plan` shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from patchsae.pipeline.core.machine import Machine, disk, waiting
from patchsae.pipeline.core.resources import Resources
from patchsae.pipeline.core.text import size
from patchsae.pipeline.experiment.plan import Planned
from patchsae.storage.atomic import has_no_inodes, nearest_folder
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store


@dataclass(frozen=True)
class Total:
    """The sums over nodes that run; what is not known counts as 0.

    `n_bytes` and `n_bytes_most` are those of `bytes_at_once`.
    """

    n_bytes: int
    n_bytes_most: int
    seconds: float


def is_certain(item: Planned) -> bool:
    """Whether a node runs for certain: it is not cached, not blocked, and not only perhaps to run."""
    return item.again or item.state not in ("cached", "blocked", "perhaps")


def seconds_of(item: Planned, store: Store, machine: Machine) -> float | None:
    """The predicted seconds of a node; None if they are not known."""
    effort = item.prediction.effort
    if effort is None:
        return None
    folder = nearest_folder(store.root)
    found = machine.seconds([*effort, (disk(folder), item.n_bytes_most)])
    fixed = machine.seconds([waiting(0.5, "locks, manifest and task of a stage")])
    return None if found is None or fixed is None else fixed + found * (1 - item.share_done)


def bytes_at_once(items: Iterable[Planned]) -> tuple[int, int]:
    """(bytes that are written and stay, the most that is added to the disk at any time) of nodes that run.

    `items` are in the order of the run. Checkpoints and parts are deleted with the end of a stage, and so is the
    artifact that was built again. SAEs are trained in passes of as many as one takes by default.
    """
    certain = [item for item in items if is_certain(item)]
    of_training = [item.n_bytes_most - (item.n_bytes_left or 0) for item in certain if _is_trained(item)]
    in_one_pass = sum(sorted(of_training, reverse=True)[: Resources().members])
    written = added = most = 0
    for item in certain:
        left = item.n_bytes_left or 0
        beside = in_one_pass if _is_trained(item) else item.n_bytes_most - left
        most = max(most, added + left + beside)
        written += left
        added += left - item.n_bytes_replaced
    return written, most


def _is_trained(item: Planned) -> bool:
    return item.node.stage.name == "train"


def total(items: Iterable[Planned], store: Store, machine: Machine) -> Total:
    """What the nodes that certainly run take together."""
    certain = [item for item in items if is_certain(item)]
    seconds = sum(seconds_of(item, store, machine) or 0.0 for item in certain)
    return Total(*bytes_at_once(certain), seconds)


def check_space(store: Store, planned: Mapping[str, Planned]) -> None:
    """Raises UserError if the bytes that are left to write do not fit on the disk, or no file does.

    They include checkpoints and parts. Nodes that cannot run, and those that run only if images or weights turn
    out to have changed, are not counted. An artifact that is built again needs its whole size until it takes the
    place of the old one.
    """
    to_write = [item for item in planned.values() if is_certain(item)]
    _, needed = bytes_at_once(to_write)
    free = store.free_bytes()
    if needed > free:
        largest = max(to_write, key=lambda item: item.n_bytes_most)
        raise UserError(
            f"{store.root}: the run needs about {size(needed)} more and {size(free)} are free "
            f"(the largest is {largest.node.address}, {size(largest.n_bytes_most)} with its checkpoints and parts); "
            "choose another --store or fewer images."
        )
    if to_write and has_no_inodes(store.root):
        raise UserError(
            f"{store.root}: the disk has no inodes left, so no file can be made; delete some files there or choose "
            "another --store."
        )
