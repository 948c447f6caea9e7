"""SAEs trained in one pass: each is what it would have been alone, whatever happens to the others."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from patchsae.pipeline.core.execute import Assignment, execute
from patchsae.pipeline.core.graph import Names, Node
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.plan import Planned
from patchsae.pipeline.experiment.run import Companions
from patchsae.pipeline.training import train
from patchsae.pipeline.training.objective import TrainedSaeConfig
from patchsae.storage.artifacts import Artifact
from patchsae.storage.chunk_reader import ChunkReader
from patchsae.storage.errors import UserError
from patchsae.storage.keys import artifact_key
from patchsae.storage.store import Store
from tests.support.training_inputs import (
    EVERY_STEP,
    KINDS,
    NO_STEP,
    Killed,
    bytes_of,
    config_of,
    inputs_in,
    killed_at,
)

MEMBERS: list[TrainedSaeConfig] = [
    *(config_of(kind) for kind in KINDS),
    config_of("relu_l1", n_latents=64, seed=3, precision="bfloat16"),
    config_of("topk", k=5, n_steps=33, lr_schedule="cosine", clip_grad_norm=0.05),
    config_of("batch_topk", input_norm="expected_norm", lr_schedule="trapezoid", init="data_points"),
    config_of("matryoshka", selection="topk", b_dec_init="mean"),
]


def assignment(config: TrainedSaeConfig, inputs: dict[str, Artifact]) -> Assignment:
    keys = {role: artifact.key for role, artifact in inputs.items()}
    key = artifact_key("train", train.STAGE.version, config.key_config(), keys)
    return Assignment(train.STAGE, "train/one", config, inputs, keys, key)


def run(store: Store, configs: list[TrainedSaeConfig], runtime: Runtime | None = None) -> list[Artifact]:
    inputs = inputs_in(store)
    return execute(store, [assignment(config, inputs) for config in configs], runtime or Runtime())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, bytes], Any]]:
    """Every member trained by itself."""
    store = Store(tmp_path_factory.mktemp("alone"))
    torch.set_num_threads(1)
    done = [run(store, [config])[0] for config in MEMBERS]
    return [(bytes_of(artifact), artifact.manifest.summary) for artifact in done]


def test_every_member_is_what_it_is_alone(store: Store, alone: list[tuple[dict[str, bytes], Any]]) -> None:
    together = run(store, MEMBERS)
    assert len({artifact.key for artifact in together}) == len(MEMBERS)
    for config, artifact, (files, summary) in zip(MEMBERS, together, alone, strict=True):
        assert bytes_of(artifact) == files, config.kind  # type: ignore[attr-defined]
        assert artifact.manifest.summary == summary


def test_members_at_different_steps_go_on_together(
    store: Store, alone: list[tuple[dict[str, bytes], Any]]
) -> None:
    for members, at in ((MEMBERS[:3], 9), (MEMBERS[2:6], 21), (MEMBERS, 40), (MEMBERS, 52)):
        with pytest.raises(Killed):
            run(store, members, killed_at(at))
    done = run(store, MEMBERS)
    assert [bytes_of(artifact) for artifact in done] == [files for files, _ in alone]


def test_a_member_added_later_leaves_the_others_alone(
    store: Store, alone: list[tuple[dict[str, bytes], Any]]
) -> None:
    first = run(store, MEMBERS[:2])
    times = [(a.path / "manifest.json").stat().st_mtime_ns for a in first]
    done = run(store, MEMBERS[:3])
    assert [(a.path / "manifest.json").stat().st_mtime_ns for a in done[:2]] == times
    assert bytes_of(done[2]) == alone[2][0]


def test_one_that_diverges_takes_no_other_with_it(
    store: Store, alone: list[tuple[dict[str, bytes], Any]]
) -> None:
    broken = config_of("topk", lr=1e30, lr_warmup_steps=0)
    with pytest.raises(UserError, match=r"no longer a number after step \d+; set a lower lr"):
        run(store, [MEMBERS[0], broken, MEMBERS[1]], EVERY_STEP)
    done = run(store, MEMBERS[:2])
    assert [bytes_of(artifact) for artifact in done] == [files for files, _ in alone[:2]]
    left = store.at("train", assignment(broken, inputs_in(store)).key)
    checkpoint = left.checkpoints.latest()
    if checkpoint is not None:
        assert all(np.isfinite(a).all() for n, a in checkpoint.arrays.items() if n.startswith("parameter"))
    assert not left.is_committed


def test_the_store_is_read_once_for_all(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Any] = []
    plain = ChunkReader.read_into

    def counted(self: ChunkReader, chunk: Any, place: Any) -> None:
        reads.append(chunk)
        plain(self, chunk, place)

    monkeypatch.setattr(ChunkReader, "read_into", counted)
    counts = []
    for n in (1, 4):
        reads.clear()
        stream_only = [config.model_copy(update={"n_steps": 60}) for config in MEMBERS[:n]]
        inputs = inputs_in(Store(tmp_path / str(n)))
        outs = [
            Store(tmp_path / str(n)).begin(Artifact("train", str(i) * 64, tmp_path / f"{n}-{i}"))
            for i in range(n)
        ]
        members, stream = train.begin(stream_only, inputs, outs, Runtime(), train.ALONE)
        train.train(members, stream, NO_STEP, train.ALONE)
        counts.append(len(reads))
    assert counts[0] == counts[1] > 0


def test_a_checkpoint_of_another_sae_is_named_and_kept(store: Store) -> None:
    inputs = inputs_in(store)
    wide, narrow = (assignment(config_of("topk", n_latents=n), inputs) for n in (64, 32))
    other = assignment(config_of("jumprelu"), inputs)
    with pytest.raises(Killed):
        execute(store, [wide], killed_at(5))
    source = store.at("train", wide.key).path / "checkpoints"
    for victim in (narrow, other):
        folder = store.at("train", victim.key).path / "checkpoints"
        folder.mkdir(parents=True)
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        with pytest.raises(
            UserError, match=r"checkpoint of step \d is of another SAE .*; delete the folder's"
        ):
            execute(store, [victim], EVERY_STEP)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_companions_share_inputs_and_stream() -> None:
    def planned(name: str, state: Any = "run", inputs: Any = None, **settings: Any) -> Planned:
        inputs = inputs or {"activations": "extract/a"}
        node = Node(train.STAGE, name, config_of("topk", **settings), inputs, Names(sae=name))
        return Planned(node, name * 64, {}, state, "")

    item = planned("a")
    others = [
        planned("b", k=5, seed=2, n_latents=64, n_steps=7),
        planned("c", state="resume", k=6),
        planned("d", state="cached", k=7),
        planned("e", batch_size=41),
        planned("f", split="test"),
        planned("1", shuffle_seed=1),
        planned("2", inputs={"activations": "extract/b"}),
    ]
    items = {one.node.address: one for one in [item, *others]}
    planner = SimpleNamespace(node=lambda node, planned, explain: items[node.address])
    work: Any = SimpleNamespace(planned=items, wanted=items.keys(), again=(), planner=planner)
    found = Companions(work).of(item, {"train/a": item}, (), 9)
    assert [other.node.name for other in found] == ["b", "c"]
    assert [other.node.name for other in Companions(work).of(item, {"train/a": item}, (), 1)] == ["b"]
    assert Companions(work).of(replace(item, state="cached"), {"train/a": item}, (), 9) == []
