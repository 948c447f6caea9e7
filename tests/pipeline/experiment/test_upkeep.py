"""What `verify` finds, what `verify --discard` and `gc` drop, and what they leave alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.core.stage import PartStage, Runtime
from patchsae.pipeline.experiment import forecast
from patchsae.pipeline.experiment.damage import drop_damaged, verify
from patchsae.pipeline.experiment.experiment import Experiment, parse
from patchsae.pipeline.experiment.forecast import check_space
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import groups, run
from patchsae.pipeline.experiment.unneeded import delete_unneeded, unfinished, unneeded
from patchsae.pipeline.saes.sae import WEIGHTS
from patchsae.storage import activations
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.errors import UserError
from patchsae.storage.files import FileRecord
from patchsae.storage.store import Store

TEXT = """
name: small
datasets:
  digits: {{kind: digits, n_images: 60}}
backbones:
  tiny: {{kind: open_clip, model: patchsae-tiny, checkpoint: {checkpoint!r}}}
saes:
  one: {{kind: topk, k: 4, dataset: digits, backbone: tiny, n_latents: 32, batch_size: 64, n_steps: 3}}
  two: {{kind: topk, k: 5, dataset: digits, backbone: tiny, n_latents: 32, batch_size: 64, n_steps: 3}}
evaluations:
  of-one: {{kind: statistics, sae: one, tau: 0.01}}
  of-two: {{kind: statistics, sae: two, tau: 0.01}}
  masking: {{kind: masking, statistics: of-one, ks: [1], n_random: 1}}
"""


@pytest.fixture
def text(tiny_checkpoint: Path) -> str:
    return TEXT.format(checkpoint=str(tiny_checkpoint))


@pytest.fixture
def experiment(text: str) -> Experiment:
    return parse(text, "small")


@pytest.fixture
def done(store: Store, experiment: Experiment) -> dict[str, Artifact]:
    """Every artifact by its address; the store has two of most."""
    return run(work_on(store, experiment), Runtime())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def states(store: Store, experiment: Experiment) -> dict[str, str]:
    return {a: item.state for a, item in work_on(store, experiment).planned.items() if item.state != "cached"}


def test_damaged_weights_are_refused_and_take_with_them_what_was_made_from_them(
    store: Store, experiment: Experiment, done: dict[str, Artifact]
) -> None:
    outputs = {address: artifact.manifest.outputs for address, artifact in done.items()}
    store.discard(done["statistics/of-one"])
    flip(done["train/one"].path / "sae.safetensors")
    with pytest.raises(UserError, match=r"sae\.safetensors: is not what was written"):
        run(work_on(store, experiment), Runtime())
    assert not done["statistics/of-one"].is_committed
    found = verify(store, Reporter())
    assert [damage.artifact.key for damage in found.damages] == [done["train/one"].key]
    dropped = drop_damaged(store, found)
    assert {a.stage for a in dropped.made_from_them} == {"masking"}
    left = states(store, experiment)
    assert left.keys() == {"train/one", "statistics/of-one", "masking/masking"}
    again = run(work_on(store, experiment), Runtime())
    assert {address: artifact.manifest.outputs for address, artifact in again.items()} == outputs
    assert verify(store, Reporter()).sentences == []


@pytest.mark.parametrize("address", ["classifier/digits-tiny-dataset", "statistics/of-one", "index/digits"])
def test_a_damaged_small_file_is_noticed_when_it_is_read(
    store: Store, experiment: Experiment, done: dict[str, Artifact], address: str
) -> None:
    for output in done[address].manifest.outputs:
        flip(done[address].path / output.path)
    store.discard(done["masking/masking"])
    with pytest.raises(UserError, match="is not what was written"):
        run(work_on(store, experiment), Runtime())
    drop_damaged(store, verify(store, Reporter()))
    again = run(work_on(store, experiment), Runtime())
    assert again["masking/masking"].manifest.outputs == done["masking/masking"].manifest.outputs


def test_a_damaged_shard_costs_one_part_and_nothing_that_was_made_from_it(
    store: Store, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "_CHUNK_BYTES", 17 * 32 * 2 * 8)
    done = run(work_on(store, experiment), Runtime())
    extract = done["extract/digits-tiny"]
    n_parts = len(extract.ledger.parts())
    assert n_parts > 2
    flip(activations.shard_file(extract.path, 1))
    [damage] = verify(store, Reporter()).damages
    assert damage.made_from_it == []
    drop_damaged(store, verify(store, Reporter()))
    assert extract.ledger.n_done() == n_parts - 1
    assert states(store, experiment) == {"extract/digits-tiny": "resume"}


def test_what_follows_from_an_index_is_kept_if_its_inputs_were_checked(
    store: Store, experiment: Experiment, done: dict[str, Artifact]
) -> None:
    flip(done["index/digits"].path / "tables" / "images.parquet")
    [damage] = verify(store, Reporter()).damages
    assert damage.made_from_it == []
    # Earlier versions did not compare their inputs with their digests.
    for artifact in done.values():
        manifest = Artifact(artifact.stage, artifact.key, artifact.path).manifest
        provenance = {k: v for k, v in manifest.provenance.items() if k != "made_from"}
        older = manifest.model_copy(update={"provenance": provenance}).sealed()
        (artifact.path / "manifest.json").write_text(older.model_dump_json())
    [damage] = verify(store, Reporter()).damages
    assert {a.stage for a in damage.made_from_it} == {
        *("extract", "classifier", "train", "statistics", "masking")
    }


def test_what_a_process_reads_is_left_alone(store: Store, done: dict[str, Artifact]) -> None:
    flip(done["train/one"].path / "sae.safetensors")
    found = verify(store, Reporter())
    with store.reading([done["train/one"]]):
        dropped = drop_damaged(store, found)
    [(left, why)] = [(a, why) for a, why in dropped.left.items() if a.stage == "train"]
    assert left.key == done["train/one"].key and "reads it" in why and not dropped.damaged
    assert done["train/one"].is_committed


def test_the_sound_files_of_a_damaged_artifact_are_read_once(
    store: Store, done: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, n_read, is_sound = done["train/one"], Counter[str](), FileRecord.is_sound

    def counted(record: FileRecord, root: Path) -> bool:
        n_read.update([record.path] if root == artifact.path else [])
        return is_sound(record, root)

    monkeypatch.setattr(FileRecord, "is_sound", counted)
    outputs = {output.path for output in artifact.manifest.outputs}
    flip(artifact.path / WEIGHTS)
    assert artifact in drop_damaged(store, verify(store, Reporter())).damaged
    assert len(outputs) > 1 and n_read.keys() == outputs
    assert {path for path, n in n_read.items() if n > 1} == {WEIGHTS}


@pytest.mark.parametrize("damaged", ["sae.safetensors", "manifest.json"])
def test_what_was_mended_meanwhile_is_not_dropped(
    store: Store, experiment: Experiment, done: dict[str, Artifact], damaged: str
) -> None:
    path = done["train/one"].path / damaged
    whole = path.read_bytes()
    path.write_bytes(b"\xff" + whole[1:])
    found = verify(store, Reporter())
    assert len(found.damages) == 1
    path.write_bytes(whole)
    dropped = drop_damaged(store, found)
    assert not (dropped.damaged or dropped.made_from_them or dropped.left)
    assert states(store, experiment) == {}


def test_a_damaged_artifact_behind_a_link_is_left_as_it_is(
    store: Store, done: dict[str, Artifact], tmp_path: Path
) -> None:
    artifact = done["statistics/of-two"]
    artifact.path.rename(tmp_path / "elsewhere")
    artifact.path.symlink_to(tmp_path / "elsewhere")
    flip(tmp_path / "elsewhere" / "tables" / "latents.parquet")
    flip(done["statistics/of-one"].path / "tables" / "latents.parquet")
    dropped = drop_damaged(store, verify(store, Reporter()))
    assert {a.key for a in dropped.damaged} == {done["statistics/of-one"].key}
    assert "is a link" in dropped.left[next(a for a in dropped.left if a.key == artifact.key)]
    assert (tmp_path / "elsewhere" / "manifest.json").exists()


def test_verify_says_which_store_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        verify(Store(tmp_path / "nowhere"), Reporter())


def test_two_experiments_of_one_name_keep_their_artifacts(
    store: Store, text: str, experiment: Experiment, done: dict[str, Artifact]
) -> None:
    other = parse(text.replace("n_images: 60", "n_images: 50").replace("n_steps: 3", "n_steps: 4"), "small")
    second = run(work_on(store, other), Runtime())
    assert not {a.key for a in done.values()} & {a.key for a in second.values() if a.stage == "train"}
    deleted, _ = delete_unneeded(store)
    assert not {item.artifact.key for item in deleted} & {a.key for a in (*done.values(), *second.values())}
    assert states(store, experiment) == {} == states(store, other)


def test_what_a_run_has_reached_is_protected_while_it_runs(store: Store, experiment: Experiment) -> None:
    for group in groups(work_on(store, experiment), Runtime()):
        group.build()
        with pytest.raises(UserError, match="is running"):
            store.records.forget("small")
        assert delete_unneeded(store) == ([], [])
    store.records.forget("small")
    assert delete_unneeded(store)[0]


def test_an_artifact_deleted_after_the_plan_is_built_again(
    store: Store, experiment: Experiment, done: dict[str, Artifact]
) -> None:
    """`gc` may have come between the plan and the run."""
    work = work_on(store, experiment, rerun=["masking"])
    for name in store.records.all():
        store.records.forget(name)
    delete_unneeded(store)
    again = run(work, Runtime())
    assert again["masking/masking"].manifest.outputs == done["masking/masking"].manifest.outputs


def test_what_is_done_needs_no_space_again(
    store: Store, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "_CHUNK_BYTES", 17 * 32 * 2 * 8)
    done = run(work_on(store, experiment), Runtime())
    extract = done["extract/digits-tiny"]
    shard = activations.shard_file(extract.path, 1)
    missing = shard.stat().st_size
    shard.write_bytes(b"")
    store.drop(extract)
    planned = work_on(store, experiment).planned
    [item] = [item for item in planned.values() if item.has_work]
    assert item.state == "resume" and item.n_bytes_left is not None and item.n_bytes is not None
    assert missing <= item.n_bytes_left < missing + 10_000 < item.n_bytes
    monkeypatch.setattr(Store, "free_bytes", lambda _: item.n_bytes_left)
    check_space(store, planned)
    monkeypatch.setattr(Store, "free_bytes", lambda _: item.n_bytes_left - 1)
    with pytest.raises(UserError, match="more and"):
        check_space(store, planned)
    again = dataclasses.replace(item, again=True, state="cached", n_bytes_there=0)
    monkeypatch.setattr(Store, "free_bytes", lambda _: item.n_bytes_left)
    with pytest.raises(UserError, match="more and"):
        check_space(store, {"extract": again})
    monkeypatch.setattr(forecast, "has_no_inodes", lambda _: True)
    monkeypatch.setattr(Store, "free_bytes", lambda _: 1 << 40)
    with pytest.raises(UserError, match="no inodes"):
        check_space(store, planned)


def _another_gpu(patch: pytest.MonkeyPatch) -> None:
    """Weights that are computed from now on differ in one bit."""
    write = Builder.write

    def other(out: Builder, name: str, data: bytes) -> Path:
        return write(out, name, data[:-2] + bytes([data[-2] ^ 1]) + data[-1:] if name == WEIGHTS else data)

    patch.setattr(Builder, "write", other)


def test_what_was_made_from_an_sae_that_is_now_another_one_is_made_again(
    store: Store, experiment: Experiment, done: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = {address: artifact.manifest.provenance["started"] for address, artifact in done.items()}
    run(work_on(store, experiment, rerun=["train/one"]), Runtime())
    assert states(store, experiment) == {}, "trained again with the same bytes"
    _another_gpu(monkeypatch)
    run(work_on(store, experiment, only=["train/one"], rerun=["train/one"]), Runtime())
    planned = work_on(store, experiment).planned
    assert {a: item.why for a, item in planned.items() if item.has_work} == {
        "statistics/of-one": "made from another build of train/one",
        "masking/masking": "made from another build of train/one",
    }
    again = run(work_on(store, experiment), Runtime())
    assert states(store, experiment) == {}
    changed = {a for a, artifact in again.items() if artifact.manifest.provenance["started"] != started[a]}
    assert changed == {"train/one", "statistics/of-one", "masking/masking"}
    assert not any(store.rebuild_of(artifact).path.exists() for artifact in again.values())


def test_unfinished_statistics_of_an_sae_that_is_now_another_one_begin_anew(
    store: Store, experiment: Experiment, done: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = done["statistics/of-one"]
    store.discard(statistics)
    with monkeypatch.context() as patch:
        patch.setattr("patchsae.pipeline.evaluations.kinds.statistics.merge_sums", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(work_on(store, experiment), Runtime())
    assert statistics.ledger.n_done() > 0
    _another_gpu(monkeypatch)
    run(work_on(store, experiment, only=["train/one"], rerun=["train/one"]), Runtime())
    n_computed: list[int] = []
    do_part = PartStage.do_part
    monkeypatch.setattr(
        PartStage, "do_part", lambda *given: (n_computed.append(given[3]), do_part(*given))[1]
    )
    run(work_on(store, experiment, only=["statistics/of-one"]), Runtime())
    assert 0 in n_computed


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_gc_sees_abandoned_checkpoints_and_what_failed_with_nothing_done(
    store: Store, text: str, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(work_on(store, experiment, only=["index", "weights", "extract"]), Runtime())
    with monkeypatch.context() as patch:
        patch.setattr("patchsae.pipeline.training.train._finish", _interrupted)
        for own in (experiment, parse(text.replace("n_steps: 3", "n_steps: 4"), "small")):
            with pytest.raises(KeyboardInterrupt):
                run(work_on(store, own), Runtime())
        patch.setattr("patchsae.pipeline.training.train.begin", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(work_on(store, parse(text.replace("n_steps: 3", "n_steps: 5"), "small")), Runtime())
    # Records lead to all six SAEs. Two of them have nothing that a run could go on with.
    assert {(item.artifact.stage, item.why) for item in unneeded(store)} == {
        ("train", "failed or killed, with nothing done")
    }
    assert len(unneeded(store)) == 2
    kept = unfinished(store)
    assert sorted(one.done for one in kept) == ["checkpoint of step 3"] * 2 + ["checkpoint of step 4"] * 2
    assert all(one.n_bytes > 3 * 4 * 2 * 32 * 32 and len(one.names) == 1 for one in kept)
    # While it is built, it is nobody's business.
    with store.building(unneeded(store)[0].artifact):
        assert len(unneeded(store)) == 1
    with store.building(kept[0].artifact):
        assert len(unfinished(store)) == 3
    delete_unneeded(store)
    assert unneeded(store) == [] and [one.artifact for one in unfinished(store)] == [k.artifact for k in kept]
    # A run that is given up leaves its checkpoints to gc, also of an experiment that goes on under that name.
    [given_up] = {name for one in kept if one.done.endswith("3") for name in one.names}
    store.records.forget(given_up)
    assert [item.why for item in unneeded(store)] == ["checkpoint of step 3; no record needs it"] * 2
    deleted, _ = delete_unneeded(store)
    assert sum(item.n_bytes for item in deleted) > 0 and len(unfinished(store)) == 2
    run(work_on(store, parse(text.replace("n_steps: 3", "n_steps: 4"), "small"), only=["train"]), Runtime())
    assert unfinished(store) == []
