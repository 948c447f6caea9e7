"""`StoreView`, in which Prefect looks up the results of stage tasks: the store itself, seen as records.

A record of Prefect names the serializer that reads it back, pickle among them, and Prefect obeys. So a
folder of records in a store could execute anything. There is no such folder: a record is made on the spot
from the key that Prefect asks for, exactly if that artifact is there, and what Prefect wants to write is
dropped. Records that earlier versions left in `prefect/results` are never opened.
"""

from __future__ import annotations

from typing import Any, TypedDict

from prefect.filesystems import WritableFileSystem
from prefect.results import ResultStore
from prefect.serializers import JSONSerializer

from patchsae.storage.errors import UserError
from patchsae.storage.store import Store

# Without hooks: Prefect's own decoder imports whatever name it finds in the JSON.
PLAIN_JSON: JSONSerializer[Any] = JSONSerializer(object_encoder=None, object_decoder=None)


class Reference(TypedDict):
    """The place of an artifact in the store; the result of a task."""

    stage: str
    key: str
    path: str


def record_name(stage: str, key: str) -> str:
    """The name under which Prefect looks up the result of building an artifact."""
    return f"{stage}-{key}"


class StoreView(WritableFileSystem):
    """The artifacts of the store at `root`, each as the record of a task that returned its reference."""

    _block_type_name = "patchsae store"

    root: str

    def read_path(self, path: str, _sync: bool = True) -> Any:
        """The record of the artifact whose `record_name` is `path`.

        Raises UserError if it is not there, which Prefect takes for a result that is not cached.
        """
        stage, _, key = path.rpartition("-")
        store = Store(self.root)
        if not stage or not store.is_usable(stage, key):
            raise UserError(f"{self.root}: no artifact {path}; run the experiment again.")
        artifact = store.at(stage, key)
        reference: Reference = {"stage": stage, "key": key, "path": str(artifact.path)}
        return (
            ResultStore(result_storage=self, serializer=PLAIN_JSON)
            .create_result_record(reference, path)
            .serialize()
        )

    async def aread_path(self, path: str) -> Any:
        return self.read_path(path)

    def write_path(self, path: str, content: bytes, _sync: bool = True) -> Any:
        """Does nothing: the artifact's manifest is the record."""

    async def awrite_path(self, path: str, content: bytes) -> None:
        """Does nothing."""

    def _resolve_path(self, path: str) -> None:
        """Tells Prefect that names of records are no paths, so that it opens none of them by itself."""
