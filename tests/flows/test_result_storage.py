"""What Prefect reads back as the result of a stage: no record in a store is unpickled, or even opened."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from uuid import uuid4

import pytest
from prefect import tags
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultRecord, ResultRecordMetadata, ResultStore
from prefect.serializers import PickleSerializer

from patchsae.flows.experiment import experiment
from patchsae.flows.result_storage import PLAIN_JSON, StoreView, record_name
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.prefect_server import ADDRESSES, Server, task_states


class Bomb:
    """Makes the folder `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def planted(store: Store, tmp_path: Path) -> Path:
    """The marker that is there once a record in the store was unpickled. There is one record per artifact."""
    marker = tmp_path / "marker"
    results = store.root / "prefect" / "results"
    results.mkdir(parents=True)
    for artifact in store.committed():
        name = record_name(artifact.stage, artifact.key)
        metadata = ResultRecordMetadata(serializer=PickleSerializer(), storage_key=str(results / name))
        (results / name).write_bytes(ResultRecord(result=Bomb(marker), metadata=metadata).serialize())
    # What Prefect does with such a folder by itself.
    ResultStore(result_storage=LocalFileSystem(basepath=str(results)), serializer=PLAIN_JSON).read(name)
    marker.rmdir()
    return marker


def test_records_in_a_store_are_not_executed(
    in_server: Server, store: Store, little: Path, planted: Path
) -> None:
    with tags(name := uuid4().hex):
        experiment(experiment=str(little), store=str(store.root))
    assert not planted.exists()
    states = task_states(FlowRunFilter(tags=FlowRunFilterTags(all_=[name])), len(ADDRESSES))
    assert set(states.values()) == {"Cached"}
    # Again, with a stage to build in this process and one to build on Dask workers.
    for stage in ("classifier", "statistics"):
        shutil.rmtree(store.committed(stage)[0].path)
    experiment(experiment=str(little), store=str(store.root))
    assert store.committed("classifier") and store.committed("statistics")
    assert not planted.exists()


def test_prefect_writes_nothing_into_a_store(in_server: Server, store: Store, little: Path) -> None:
    shutil.rmtree(store.committed("classifier")[0].path)
    experiment(experiment=str(little), store=str(store.root))
    assert store.committed("classifier")
    assert not (store.root / "prefect").exists()


def test_a_record_is_made_from_the_artifact(store: Store) -> None:
    train = store.committed("train")[0]
    view = StoreView(root=str(store.root))
    name = record_name("train", train.key)
    record: ResultRecord[object] = ResultRecord.deserialize(view.read_path(name))
    assert record.result == {"stage": "train", "key": train.key, "path": str(train.path)}
    assert record.serializer == PLAIN_JSON
    for missing in (record_name("index", train.key), record_name("train", "0" * 64), train.key, "", "../x-y"):
        with pytest.raises(UserError, match="run the experiment again"):
            view.read_path(missing)
    (train.path / "sae.safetensors").unlink()
    with pytest.raises(UserError, match="run the experiment again"):
        view.read_path(name)
