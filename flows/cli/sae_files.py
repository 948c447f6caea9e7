"""Exports, conversions and ViSAEBench scores of SAEs, for the commands in `exchange.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from patchsae.flows.cli.screen import waiting
from patchsae.flows.resources import check_device
from patchsae.flows.run_folder import run_folder
from patchsae.pipeline.evaluations import visaebench
from patchsae.pipeline.images.tables import labels_of, split_range
from patchsae.pipeline.results.find import find_sae, input_of
from patchsae.pipeline.saes import files as sae_files
from patchsae.pipeline.saes.sae import load_sae
from patchsae.storage.activations import Activations
from patchsae.storage.atomic import write_folder
from patchsae.storage.store import Store


def export(store: Store, word: str, format_name: str, folder: Path, replace: bool) -> list[Path]:
    """Writes an SAE to a new folder in the format `format_name`, and returns the files.

    Raises UserError if that is not possible; then nothing is written.
    """
    waiting.on("reading the SAE")
    files = sae_files.save_files(load_sae(find_sae(store, word)), format_name)
    waiting.on("writing the SAE")
    write_folder(folder, files, replace)
    return [folder / name for name in files]


def convert(source: Path, format_name: str | None, folder: Path, replace: bool) -> tuple[str, list[Path]]:
    """Writes another tool's SAE to a new folder in our format. Returns a description of it, and the files."""
    waiting.on("reading the SAE")
    sae = sae_files.load(source, format_name)
    files = sae_files.save_files(sae, "patchsae")
    waiting.on("writing the SAE")
    write_folder(folder, files, replace)
    words = f"{sae.n_latents:,} latents of {sae.width} channels, {sae.activation}"
    return words, [folder / name for name in files]


def score(
    store: Store, word: str, split: str, metrics: Sequence[str], device: str
) -> list[dict[str, float | str]]:
    """ViSAEBench's metrics of an SAE, on the activations of `split` in the dataset it was trained on."""
    visaebench.check_metrics(metrics)
    check_device(device)
    artifact = find_sae(store, word)
    activations = input_of(store, artifact, "activations", "extract")
    images = input_of(store, artifact, "images", "index")
    rows = split_range(images, split)
    labels = labels_of(images)[rows.start : rows.stop]
    with store.reading([artifact, activations, images]), run_folder() as scratch:
        return visaebench.score(
            load_sae(artifact, device), Activations(activations), rows, labels, metrics, scratch.path, device
        )
