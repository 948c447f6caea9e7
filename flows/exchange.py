"""SAEs out of a store into other tools' files, and the other way; and what ViSAEBench says of one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.index import split_range
from pipeline.interchange import formats, visaebench
from pipeline.latents import labels_of
from pipeline.saes.base import load_sae
from storage.activations import Activations
from storage.artifacts import Artifact, Store
from storage.atomic import write_folder
from storage.errors import UserError

_STAGES = ("train", "import")
_DIGITS = 4


def find_sae(store: Store, word: str) -> Artifact:
    """The SAE that `word` names: its address in a recorded run (`train/relu`), or the first digits of its key.

    Raises UserError if there is none, several, or it is damaged.
    """
    saes = {sae.key: sae for stage in _STAGES for sae in store.committed(stage)}
    recorded = {
        key: name
        for name, artifacts in store.experiments().items()
        for address, (stage, key) in artifacts.items()
        if address == word and stage in _STAGES
    }
    keys = [key for key in saes if key in recorded or (len(word) >= _DIGITS and key.startswith(word))]
    if len(keys) > 1:
        known = ", ".join(f"{key[:16]} ({recorded.get(key, 'no run')})" for key in keys)
        raise UserError(f"{word}: several SAEs are called that, {known}; give the key of one.")
    if not keys and recorded:
        raise UserError(
            f"{word}: a run names it, but it is not in {store.root} (or damaged); run that again."
        )
    if not keys:
        known = ", ".join(sorted(f"{sae.stage} {key[:16]}" for key, sae in saes.items())) or "none"
        raise UserError(
            f"{word}: no SAE of {store.root} has this address or key; `patchsae status` lists them ({known})."
        )
    return saes[keys[0]]


def export(store: Store, word: str, format_name: str, folder: Path, replace: bool) -> list[Path]:
    """Writes an SAE in a format to a new folder; returns its files. Raises UserError before anything is written."""
    files = formats.save_files(load_sae(find_sae(store, word)), format_name)
    write_folder(folder, files, replace)
    return [folder / name for name in files]


def convert(source: Path, format_name: str | None, folder: Path, replace: bool) -> tuple[str, list[Path]]:
    """Writes another tool's SAE as ours to a new folder; returns what it is in words, and the files."""
    sae = formats.load(source, format_name)
    files = formats.save_files(sae, "patchsae")
    write_folder(folder, files, replace)
    words = f"{sae.n_latents:,} latents of {sae.width} channels, {sae.activation}"
    return words, [folder / name for name in files]


def score(
    store: Store, word: str, split: str, metrics: Sequence[str], device: str
) -> list[dict[str, float | str]]:
    """ViSAEBench's metrics of an SAE on the cached activations it was made for, on images of `split`."""
    visaebench.check_metrics(metrics)
    artifact = find_sae(store, word)
    inputs = artifact.manifest.inputs
    activations = _input(store, artifact, "extract", inputs["activations"])
    images = _input(store, artifact, "index", inputs["images"])
    rows = split_range(images, split)
    labels = labels_of(images)[rows.start : rows.stop]
    with tempfile.TemporaryDirectory(prefix="patchsae-visaebench-") as scratch:
        return visaebench.score(
            load_sae(artifact, device), Activations(activations), rows, labels, metrics, Path(scratch), device
        )


def _input(store: Store, sae: Artifact, stage: str, identity: str) -> Artifact:
    for artifact in store.committed(stage):
        if artifact.identity == identity:
            return artifact
    raise UserError(
        f"{sae.stage} {sae.key[:16]}: the {stage} artifact it was made from is not in {store.root}; run it again."
    )
