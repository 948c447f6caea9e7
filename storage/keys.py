"""Content keys: what an artifact is called and how bytes are digested."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> str:
    """One spelling for one value: sorted keys, no spaces, no NaN. Raises TypeError on sets, ValueError on NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_bytes(data: bytes | memoryview) -> str:
    """sha256 of `data` as hex."""
    return hashlib.sha256(data).hexdigest()


def digest_buffers(buffers: Iterable[memoryview]) -> str:
    """sha256 of buffers one after another; other threads run meanwhile."""
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
    """The key of a stage's artifact: everything that decides its content, and nothing else.

    `inputs` maps a role to the identity of the artifact (or outside source) that fills it.
    """
    return digest_json({"stage": stage, "version": version, "config": config, "inputs": dict(inputs)})
