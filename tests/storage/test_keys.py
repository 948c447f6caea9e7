from __future__ import annotations

import hashlib

import pytest

from patchsae.storage.keys import artifact_key, canonical_json, digest_bytes, digest_file


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": 1, "a": [1.0, "ü"]}) == '{"a":[1.0,"ü"],"b":1}'
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})


@pytest.mark.parametrize("value", [{"x": float("nan")}, {"x": float("inf")}])
def test_canonical_json_refuses_what_has_no_json(value: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        canonical_json(value)


def test_canonical_json_refuses_sets() -> None:
    with pytest.raises(TypeError):
        canonical_json({"x": {1, 2}})


def test_key_is_the_digest_of_what_decides_the_content() -> None:
    plain = '{"config":{"lr":0.1},"inputs":{"images":"abc"},"stage":"train","version":3}'
    expected = hashlib.sha256(plain.encode()).hexdigest()
    assert artifact_key("train", 3, {"lr": 0.1}, {"images": "abc"}) == expected


@pytest.mark.parametrize(
    "other",
    [
        ("index", 3, {"lr": 0.1}, {"images": "abc"}),
        ("train", 4, {"lr": 0.1}, {"images": "abc"}),
        ("train", 3, {"lr": 0.2}, {"images": "abc"}),
        ("train", 3, {"lr": 0.1}, {"images": "abd"}),
        ("train", 3, {"lr": 0.1}, {"image": "abc"}),
    ],
)
def test_every_part_of_a_key_counts(other: tuple[str, int, dict[str, float], dict[str, str]]) -> None:
    assert artifact_key(*other) != artifact_key("train", 3, {"lr": 0.1}, {"images": "abc"})


def test_digest_of_a_file_is_that_of_its_bytes(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "a file"
    path.write_bytes(b"x" * 3_000_000)
    assert digest_file(path) == digest_bytes(b"x" * 3_000_000) == hashlib.sha256(b"x" * 3_000_000).hexdigest()
