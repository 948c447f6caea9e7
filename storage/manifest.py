"""The manifest of an artifact: one JSON file, written last. The artifact exists from then on."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from patchsae.storage.files import FileRecord
from patchsae.storage.keys import artifact_key, digest_json

Summary = dict[str, float | int | str | None]


FILE = "manifest.json"


KEY_DIGITS = 16


class Manifest(BaseModel):
    """Config, inputs, files, summary and provenance of an artifact.

    `identity` is what goes into the keys of artifacts made from this one. `inputs` maps a role to an
    identity. `digest` is computed over all other fields.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    version: int
    key: str
    identity: str
    config: dict[str, Any]
    inputs: dict[str, str]
    outputs: list[FileRecord]
    summary: Summary
    provenance: dict[str, Any]
    digest: str = ""

    def _computed_digest(self) -> str:
        return digest_json(self.model_dump(exclude={"digest"}))

    def sealed(self) -> Manifest:
        return self.model_copy(update={"digest": self._computed_digest()})

    def fault(self) -> str | None:
        """Why this manifest cannot be trusted, or None if it can."""
        try:
            digest = self._computed_digest()
        except ValueError:
            return "it holds values that no manifest holds (it was edited or damaged)"
        if self.digest != digest:
            return "its content does not match its own digest (it was edited or damaged)"
        if self.key != artifact_key(self.stage, self.version, self.config, self.inputs):
            return "its key does not match its config and inputs"
        outside = [output.path for output in self.outputs if not output.is_inside()]
        if outside:
            return f"it lists the file `{outside[0]}`, which is outside the artifact's folder"
        return None

    def output(self, path: str) -> FileRecord | None:
        """The record of a file, given by its path relative to the artifact; None if it is not listed."""
        return next((output for output in self.outputs if output.path == path), None)
