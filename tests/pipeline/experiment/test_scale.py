"""How much a plan and a run look at in a store of many artifacts: counted, since times differ between machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment import run as runs
from patchsae.pipeline.experiment.experiment import Experiment, parse
from patchsae.pipeline.experiment.plan import Planner
from patchsae.pipeline.experiment.request import work_on
from patchsae.storage import artifacts
from patchsae.storage.manifest import Manifest
from patchsae.storage.store import Store
from tests.support.wide_store import commit_saes

N_SAES, N_OTHERS = 40, 120
TEXT = """
name: wide
datasets: {world: {kind: shapes, seed: 1, splits: {train: 48, test: 24}, label: colour}}
backbones: {clip: {kind: shapes_clip}}
sweeps:
  sweep:
    base: {kind: topk, k: 4, dataset: world, backbone: clip, n_latents: 8, batch_size: 64, n_steps: 2}
    grid: {seed: SEEDS}
""".replace("SEEDS", str(list(range(N_SAES))))


@pytest.fixture
def experiment() -> Experiment:
    return parse(TEXT, "wide")


@pytest.fixture
def wide(store: Store, experiment: Experiment) -> Store:
    """A store with half of the experiment's SAEs, and many others of the same images."""
    runs.run(work_on(store, experiment, only=["index", "weights", "extract"]), Runtime())
    inputs = work_on(store, experiment).planned["train/sweep-seed0"].key_inputs
    config = experiment.saes["sweep-seed0"].key_config()
    seeds = [*range(N_SAES // 2), *range(1000, 1000 + N_OTHERS)]
    commit_saes(store, [{**config, "seed": seed} for seed in seeds], inputs)
    return store


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often manifests are read and nodes are planned."""
    counts: Counter[str] = Counter()
    read, node = Manifest.model_validate_json, Planner.node

    def read_counted(*given: object, **others: object) -> object:
        counts["manifests"] += 1
        return read(*given, **others)

    def node_counted(*given: object, **others: object) -> object:
        counts["nodes"] += 1
        return node(*given, **others)

    monkeypatch.setattr(artifacts.Manifest, "model_validate_json", read_counted)
    monkeypatch.setattr(Planner, "node", node_counted)
    yield counts


def test_a_plan_reads_each_manifest_once(wide: Store, experiment: Experiment, counted: Counter[str]) -> None:
    work = work_on(wide, experiment)
    states = Counter(item.state for item in work.planned.values())
    assert states == {"cached": N_SAES // 2 + 3, "run": N_SAES // 2}
    assert work.planned[f"train/sweep-seed{N_SAES - 1}"].why.startswith("seed: ")
    assert counted["nodes"] == len(work.planned)
    # Once for its own sake, and once among those that another one may be near to.
    assert counted["manifests"] <= 2 * (N_SAES + N_OTHERS)


def test_a_run_looks_at_each_node_a_few_times_however_many_there_are(
    wide: Store, experiment: Experiment, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_on(wide, experiment)
    built: list[int] = []

    def build(store: Store, works: list[object], *_: object) -> list[object]:
        built.append(len(works))
        inputs = dict(works[0].key_inputs)
        return commit_saes(store, [one.config.key_config() for one in works], inputs)

    monkeypatch.setattr(runs, "execute", build)
    counted.clear()
    records = Counter[str]()
    write = type(wide.records).write
    monkeypatch.setattr(
        type(wide.records),
        "write",
        lambda *given, **others: (records.update(["n"]), write(*given, **others))[1],
    )
    for group in runs.groups(work, Runtime(members=8)):
        if group.first.has_work:
            group.build()
    # In passes of eight; of the members of a pass the first is the one whose turn it is.
    assert built == [8, 8, 4]
    # Each when its turn comes, once it is there, and once as a member of a pass.
    assert counted["nodes"] <= 3 * len(work.planned)
    assert counted["manifests"] <= 4 * len(work.planned)
    assert records["n"] == 1, "the record is written again only if it changed"
    assert not work_on(wide, experiment).to_do()


def test_a_node_that_another_process_built_meanwhile_is_looked_at_anew(
    wide: Store, experiment: Experiment
) -> None:
    work = work_on(wide, experiment)
    missing = [item for item in work.planned.values() if item.state == "run"]
    commit_saes(wide, [item.node.config.key_config() for item in missing], missing[0].key_inputs)
    assert not any(group.first.has_work for group in runs.groups(work, Runtime()))
    [gone] = [a for a in wide.committed("train") if a.key == missing[0].key]
    groups = runs.groups(work, Runtime())
    for group in groups:
        if group.first.node.stage.name == "extract":
            wide.discard(gone)
            break
    found = [group.first.node.address for group in groups if group.first.has_work]
    assert found == [missing[0].node.address]
