"""The names of the digits, which a backbone with few words may need others for."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from patchsae.pipeline.images.datasets.digits import DigitsConfig
from patchsae.storage.keys import digest_json

SPARE = (*(f"spare{i}" for i in range(8)), "red", "blue")


def test_digits_can_be_given_other_names() -> None:
    plain, renamed = (
        DigitsConfig(n_images=20),
        DigitsConfig(n_images=20, class_names=SPARE, prompts=("a photo of a {}.",)),
    )
    assert renamed.build().class_names() == list(SPARE) and renamed.templates() == ["a photo of a {}."]
    assert [r.class_name for r in renamed.build().records()] == [
        SPARE[r.label] for r in plain.build().records()
    ]
    # Keys of stores that were made before there were other names.
    assert plain.key_config() == {"kind": "digits", "on_corrupt": "exclude", "n_images": 20}
    assert digest_json(renamed.key_config()) != digest_json(plain.key_config())
    with pytest.raises(ValidationError, match="has 2 names; give ten"):
        DigitsConfig(class_names=("zero", "one"))
