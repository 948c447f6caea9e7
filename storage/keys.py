"""Artifact keys, and the sha256 digests of bytes, files and JSON that keys and manifests contain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no spaces, so that equal values give equal text.

    Raises TypeError on sets, and ValueError on NaN and on text that is no Unicode.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def parse_json(data: bytes) -> Any:
    """The value that JSON text holds. Raises ValueError for anything else, also if it is nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def digest_bytes(data: bytes | memoryview) -> str:
    """sha256 of `data` as hex."""
    return hashlib.sha256(data).hexdigest()


def digest_buffers(buffers: Iterable[memoryview]) -> str:
    """sha256 of the buffers joined in their order. Other threads run during it, since it releases the GIL."""
    digest = hashlib.sha256()
    for buffer in buffers:
        digest.update(buffer)
    return digest.hexdigest()


def digest_json(value: Any) -> str:
    """sha256 over the canonical JSON of `value`."""
    return digest_bytes(canonical_json(value).encode())


def digest_file(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def artifact_key(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The key of a stage's artifact: a digest of everything that decides the artifact's content.

    `inputs` maps a role to the identity of the artifact, or of the source outside the store, that fills it.
    """
    return digest_json({"stage": stage, "version": version, "config": config, "inputs": dict(inputs)})
