"""`Content`: bytes that are sent or written as they are, such as a picture; and `dump`, by which values become bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True)
class Content:
    """`media_type` as in `image/webp`. `headers` are sent besides. `max_age`: seconds that browsers may keep it."""

    data: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)
    max_age: int = 0


def dump(value: Any) -> bytes:
    """JSON without NaN and infinity, for which null stands."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
