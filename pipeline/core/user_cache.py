"""The folder in which this program keeps files of a user that belong to no store."""

from __future__ import annotations

import os
from pathlib import Path

from patchsae.storage.errors import UserError


def user_cache() -> Path:
    """`patchsae` in the user's cache folder, which need not exist. Raises UserError if the user has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "patchsae"
    except RuntimeError:
        raise UserError("HOME is not set, and the user has no home folder") from None
