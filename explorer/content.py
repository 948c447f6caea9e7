"""`Content`: bytes that the server sends as they are, such as a picture or a table as CSV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Content:
    """`media_type` as in `image/webp`. `headers` are sent besides. `max_age`: seconds that browsers may keep it."""

    data: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)
    max_age: int = 0
