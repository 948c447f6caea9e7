"""What an artifact's manifest says of its making, beside its key: code, machine, and the content of its inputs."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from patchsae.storage.artifacts import Artifact

MADE_FROM = "made_from"
"""The entry that maps a role to a digest of the input's content. Versions that did not compare inputs with their
digests when they read them did not write it."""
_ACTIVATIONS = "activations"
_PACKAGES = ("torch", "open_clip_torch", "zarr", "numpy", "polars", "pyarrow", "patchsae")


def contents(inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """A digest of the content of every input, by its role. Raises UserError if an input has no sound manifest."""
    return {role: upstream.content for role, upstream in inputs.items()}


def changed_inputs(artifact: Artifact, inputs: Mapping[str, Artifact]) -> list[str]:
    """The roles whose input was built again, with other bytes, since the artifact was made from it.

    An SAE that is trained again on a GPU has the same key and other latents. Activations are left out: they
    differ in their last bits, and everything would have to be computed again for one shard. So are inputs that
    are not in the store, and those of artifacts of earlier versions, which did not note them.
    """
    noted = artifact.manifest.provenance.get(MADE_FROM, {})
    return [
        role
        for role, upstream in inputs.items()
        if role in noted and role != _ACTIVATIONS
        if upstream.is_usable and upstream.content != noted[role]
    ]


@cache
def provenance() -> Mapping[str, Any]:
    """The git revision, host and versions that go into a manifest; none of them is in a key."""
    return {
        "git": _git_revision(),
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def _git_revision() -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None
