"""Running an experiment without Prefect: groups, reruns, what is looked at how often, and what a failure names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchsae.pipeline.activations.stream import Stream
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.evaluations.kinds import statistics
from patchsae.pipeline.experiment.experiment import Experiment, parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import groups, run, tidy
from patchsae.pipeline.images.datasets.image_folder import ImageFolder
from patchsae.pipeline.training.member import Member
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store

SWEEP = """
name: sweep
datasets:
  digits: {kind: digits, n_images: 40}
backbones:
  clip: {kind: shapes_clip}
sweeps:
  sweep:
    base: {kind: topk, dataset: digits, backbone: clip, n_latents: 32, batch_size: 64, n_steps: 3}
    grid: {k: [2, 3, 4, 5, 6]}
evaluations:
  statistics: {kind: statistics, sae: sweep-k2}
"""


@pytest.fixture
def experiment() -> Experiment:
    return parse(SWEEP, "sweep")


@pytest.fixture
def done(store: Store, experiment: Experiment) -> Store:
    run(work_on(store, experiment), Runtime())
    return store


def test_members_share_a_pass(store: Store, experiment: Experiment) -> None:
    built = []
    for group in groups(work_on(store, experiment), Runtime(members=3)):
        built.append([item.node.name for item in group.items])
        group.build()
    assert built == [
        ["digits"],
        ["clip"],
        ["digits-clip"],
        ["sweep-k2", "sweep-k3", "sweep-k4"],
        ["sweep-k3"],
        ["sweep-k4"],
        ["sweep-k5", "sweep-k6"],
        ["sweep-k6"],
        ["statistics"],
    ]


def test_a_rerun_that_is_killed_costs_nothing_and_goes_on(done: Store, experiment: Experiment) -> None:
    work = work_on(done, experiment, rerun=["train"])
    assert len(work.to_do()) == 5
    started = {a.key: a.manifest.provenance["started"] for a in done.committed("train")}
    for group in groups(work, Runtime(members=2)):
        if len(group.items) < 2:
            group.build()
            continue
        # Killed inside the first pass over its two members, after one step.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("patchsae.pipeline.training.train.train", _killed_after_a_checkpoint)
            with pytest.raises(KeyboardInterrupt):
                group.build()
        break
    assert {a.key: a.manifest.provenance["started"] for a in done.committed("train")} == started
    assert not work_on(done, experiment).to_do()
    rebuilds = [done.rebuild_of(a) for a in done.committed("train") if done.rebuild_of(a).path.exists()]
    assert [one.checkpoints.latest_step() for one in rebuilds] == [1, 1]
    outputs = {a.key: a.manifest.outputs for a in done.committed("train")}
    run(work_on(done, experiment, rerun=["train"]), Runtime())
    again = {a.key: a.manifest.provenance["started"] for a in done.committed("train")}
    assert again.keys() == started.keys()
    assert all(again[key] != started[key] for key in started)
    assert {a.key: a.manifest.outputs for a in done.committed("train")} == outputs
    assert not any(one.path.exists() for one in rebuilds)


def _killed_after_a_checkpoint(
    members: Sequence[Member], stream: Stream, runtime: Runtime, ranks: object
) -> None:
    for x in [stream.batch(1)]:
        for member in members:
            member.take_step(x.to_float32(), torch.from_numpy(x.token.astype(np.int64)))
            member.save()
    raise KeyboardInterrupt


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_rerun_builds_each_once(done: Store, experiment: Experiment) -> None:
    started = {a.key: a.manifest.provenance["started"] for a in done.committed()}
    run(work_on(done, experiment, rerun=["train/sweep-k3", "statistics"]), Runtime())
    again = {a.key: a.manifest.provenance["started"] for a in done.committed()}
    assert again.keys() == started.keys()
    assert sum(again[key] != started[key] for key in started) == 2


def test_a_second_attempt_at_a_rerun_resumes(
    done: Store, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect tries again what failed for the environment's sake."""
    artifact = done.committed("statistics")[0]
    group = next(
        group
        for group in groups(work_on(done, experiment, rerun=["statistics"]), Runtime())
        if group.first.node.stage.name == "statistics" or not group.build()
    )
    merge = "patchsae.pipeline.evaluations.kinds.statistics.merge_sums"
    with monkeypatch.context() as patch:
        patch.setattr(merge, _lost_mount)
        with pytest.raises(OSError, match="lost"):
            group.build()
    assert done.rebuild_of(artifact).ledger.n_done() > 0
    with monkeypatch.context() as patch:
        patch.setattr(statistics._Worker, "__call__", _killed)
        group.build()
    assert done.committed("statistics")[0].manifest.outputs == artifact.manifest.outputs


def _lost_mount(*_: object) -> None:
    raise OSError("the mount is lost")


def test_leftovers_of_a_kill_are_tidied_where_there_is_nothing_to_do(
    done: Store, experiment: Experiment
) -> None:
    artifact = done.committed("train")[0]
    left = artifact.path / "checkpoints" / "step-000000001.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"x" * 1000)
    work = work_on(done, experiment)
    assert not work.to_do()
    tidy(work)
    assert not left.parent.exists() and done.is_usable("train", artifact.key)


def test_a_rerun_of_what_was_never_built_builds_it(store: Store, experiment: Experiment) -> None:
    run(work_on(store, experiment, rerun=["index", "train"]), Runtime())
    assert len(store.committed("train")) == 5


def test_the_experiment_is_recorded_whole(done: Store, experiment: Experiment) -> None:
    record = done.records.all()["sweep"]
    assert record.experiment is not None
    assert Experiment.model_validate(record.experiment) == experiment
    node = record.nodes["statistics/statistics"]
    assert node.names == {
        "dataset": "digits",
        "backbone": "clip",
        "sae": "sweep-k2",
        "evaluation": "statistics",
    }
    assert node.inputs["sae"] == "train/sweep-k2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(6):
        path = tmp_path / "my photos" / f"class {i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (i, i, i)).save(path)
    return tmp_path / "my photos"


PHOTOS = """
name: photos
datasets: {{photos: {{kind: image_folder, root: {root!r}}}}}
backbones: {{clip: {{kind: shapes_clip}}, early: {{kind: shapes_clip, extract: {{hook_block: 1}}}}}}
saes:
  sae: {{kind: topk, k: 2, n_latents: 32, batch_size: 16, n_steps: 2, dataset: photos, backbone: clip}}
  other: {{kind: topk, k: 2, n_latents: 32, batch_size: 16, n_steps: 2, dataset: photos, backbone: early}}
"""


def test_a_folder_is_listed_once_by_a_plan_and_once_more_by_its_index(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = []
    plain = ImageFolder._from_folders

    def counting(self: ImageFolder, *others: object) -> object:
        listed.append(self.root)
        return plain(self, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageFolder, "_from_folders", counting)
    work = work_on(store, parse(PHOTOS.format(root=str(folder)), "photos"))
    assert len(listed) == 1
    run(work, Runtime())
    # The index itself, and the images of the two extractions come from the table.
    assert len(listed) == 2
    manifest = store.committed("index")[0].manifest
    assert manifest.provenance["source"] == {"root": str(folder)}


def test_an_image_changed_unseen_is_mended_as_the_error_says(store: Store, folder: Path) -> None:
    """Its size and time of modification are as before, so the index keeps its key and plain runs keep it."""
    experiment = parse(PHOTOS.format(root=str(folder)), "photos")
    run(work_on(store, experiment, only=["index", "weights"]), Runtime())
    path = next(folder.rglob("0.png"))
    before, times = path.read_bytes(), path.stat()
    Image.new("RGB", (40, 40), (7, 0, 0)).save(path)
    assert path.read_bytes() != before
    path.write_bytes(path.read_bytes().ljust(len(before), b"\0")[: len(before)])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(UserError, match=r"0\.png: is not the image that was indexed") as caught:
            run(work_on(store, experiment), Runtime())
    [index] = store.committed("index")
    advice = re.search(r"`patchsae run EXPERIMENT --rerun (\w+)`", str(caught.value))
    assert advice is not None
    run(work_on(store, experiment, rerun=[advice[1]]), Runtime())
    [again] = store.committed("index")
    assert again.key == index.key and again.identity != index.identity
    assert not work_on(store, experiment).to_do()


def test_a_failure_names_stage_key_and_part(
    done: Store, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = done.committed("statistics")[0]

    def bug(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(statistics._Worker, "__call__", bug)
    with pytest.raises(ZeroDivisionError) as raised:
        run(work_on(done, experiment, rerun=["statistics"]), Runtime())
    assert raised.value.__notes__ == ["part 0", f"building statistics/statistics {artifact.key[:16]}"]


def test_an_input_that_is_missing_is_named(store: Store, experiment: Experiment) -> None:
    with pytest.raises(UserError, match="train/sweep-k2 needs extract/digits-clip, which has not been run"):
        run(work_on(store, experiment, only=["index", "weights", "train"]), Runtime())


def test_a_plan_reads_no_manifest_it_does_not_need(
    done: Store, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    plain = Store.at

    def counting(self: Store, stage: str, key: str) -> object:
        read.append((stage, key))
        return plain(self, stage, key)

    monkeypatch.setattr(Store, "at", counting)
    monkeypatch.setattr(Store, "artifacts", _killed)
    work = work_on(done, experiment)
    assert not work.to_do()
    assert {key for _, key in read} == {item.key for item in work.planned.values()}


def test_a_rerun_of_a_damaged_artifact_builds_all_of_it(done: Store, experiment: Experiment) -> None:
    artifact = done.committed("statistics")[0]
    (artifact.path / "tables" / "latents.parquet").write_bytes(b"")
    run(work_on(done, experiment, rerun=["statistics"]), Runtime())
    again = done.committed("statistics")[0].manifest
    assert again.outputs == artifact.manifest.outputs
    assert again.provenance["started"] != artifact.manifest.provenance["started"]
