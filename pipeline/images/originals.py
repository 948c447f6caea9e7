"""An indexed image, read again from where it was: only the one that was indexed is given out."""

from __future__ import annotations

from typing import Any, Literal

from PIL import Image

from patchsae.pipeline.images.dataset import Dataset, Record
from patchsae.pipeline.images.files import reason
from patchsae.storage.errors import UserError
from patchsae.storage.keys import digest_bytes

# A plain run keeps the index of images whose sizes and modification times have not changed.
_INDEX_AGAIN = "index all images anew with `patchsae run EXPERIMENT --rerun index`"


class NoOriginal(UserError):
    """The image is not there any more. `what` happened to it: it is `gone`, or it has `changed`."""

    def __init__(self, sentence: str, what: Literal["gone", "changed"]) -> None:
        super().__init__(sentence)
        self.what: Literal["gone", "changed"] = what

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process of the extraction raises it too; by default it would be made of the sentence alone.
        return NoOriginal, (str(self), self.what), self.__dict__


def original(dataset: Dataset, record: Record, digest: str) -> Image.Image:
    """The RGB image of a record. `digest` is that of its bytes when it was indexed.

    Raises NoOriginal if it cannot be read or decoded, or is another image now.
    """
    try:
        data = dataset.read(record)
    except OSError as error:
        sentence = (
            f"{record.source}: cannot be read any more ({reason(error)}); put it back, or {_INDEX_AGAIN}."
        )
        raise NoOriginal(sentence, "gone") from None
    if digest_bytes(data) != digest:
        sentence = (
            f"{record.source}: is not the image that was indexed; put that one back, or {_INDEX_AGAIN}."
        )
        raise NoOriginal(sentence, "changed")
    try:
        return dataset.decode(data)
    except OSError as error:
        # An older version indexed it, which decoded more formats and sizes.
        sentence = f"{record.source}: {reason(error)}; to leave it out, {_INDEX_AGAIN}."
        raise NoOriginal(sentence, "gone") from None
