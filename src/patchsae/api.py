"""The Python API for notebooks: a store opened for reading, its tables, and its SAEs with their latents.

    >>> import patchsae
    >>> store = patchsae.open(STORE)
    >>> store
    OpenStore(..., experiments: demo)
    >>> relu = store.sae("relu")
    >>> relu.latents.select("latent", "frequency", "label_entropy").head(1).collect().columns
    ['latent', 'frequency', 'label_entropy']

Tables are Polars lazy frames. The API does not write to the store and does not need Prefect.

Shapes: d channels, S latents.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from torch.nn.functional import normalize

from patchsae.pipeline.backbones.backbone import Backbone
from patchsae.pipeline.images.files import image_files, read_file, reason
from patchsae.pipeline.images.pixels import Reading, as_rgb, decode_rgb
from patchsae.pipeline.results.backbones import recorded_backbone
from patchsae.pipeline.results.encoding import (
    IMAGES_PER_BATCH,
    cached_activations,
    latent_rows,
    own_activations,
    patch_map,
    strongest,
)
from patchsae.pipeline.results.find import SAE_STAGES, find, input_of, records_of
from patchsae.pipeline.results.originals import Originals
from patchsae.pipeline.results.places import Place
from patchsae.pipeline.results.sql import execute
from patchsae.pipeline.results.status import status_rows
from patchsae.pipeline.results.tables import Catalog
from patchsae.pipeline.saes.encode import LatentEncoder
from patchsae.pipeline.saes.sae import Sae, load_sae
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from patchsae.storage.tokens import TokenLayout

__all__ = ["EncodedImages", "OpenSae", "OpenStore", "UserError", "open"]

ImageLike = str | os.PathLike[str] | Image.Image
"""An image: its file, or a PIL image."""


def open(store: str | os.PathLike[str] | None = None) -> OpenStore:
    """Opens a store for reading: the folder `store`, or else that of `PATCHSAE_STORE`, or else `./store`.

    Raises UserError if the folder does not exist.
    """
    found = Store(store or os.environ.get("PATCHSAE_STORE") or "./store")
    if not found.root.is_dir():
        raise UserError(f"{found.root}: no store here; give its folder, or run an experiment first.")
    return OpenStore(found)


@dataclass(frozen=True)
class OpenStore:
    """A store opened for reading. Get one with `patchsae.open`."""

    store: Store

    def __repr__(self) -> str:
        return f"OpenStore({self.store.root}, experiments: {', '.join(self.experiments) or 'none'})"

    @property
    def experiments(self) -> list[str]:
        """The names of the experiments that the store has a record of."""
        return list(self.store.records.all())

    @property
    def saes(self) -> pl.DataFrame:
        """Every SAE: experiment, name, dataset, backbone and key.

        >>> patchsae.open(STORE).saes.columns
        ['experiment', 'sae', 'dataset', 'backbone', 'key']
        """
        rows = [
            {
                "experiment": name,
                "sae": node.names.get("sae"),
                "dataset": node.names.get("dataset"),
                "backbone": node.names.get("backbone"),
                "key": node.key,
            }
            for name, record in self.store.records.all().items()
            for node in record.nodes.values()
            if node.stage in SAE_STAGES
        ]
        columns = ("experiment", "sae", "dataset", "backbone", "key")
        return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String))

    @property
    def tables(self) -> list[str]:
        """The names of all tables in the store.

        >>> "latent_images" in patchsae.open(STORE).tables
        True
        """
        return sorted(Catalog(self.store).artifacts)

    def table(self, name: str, experiment: str | None = None) -> pl.LazyFrame:
        """A table over all artifacts of the store that have it, or over those of one experiment.

        The columns dataset, backbone, sae and evaluation say what a row is about. Raises UserError if there
        is no such table.

        >>> store = patchsae.open(STORE)
        >>> store.table("masking").filter(pl.col("class").is_null()).collect().height > 0
        True
        """
        return Catalog(self.store, experiment).scan(name)

    def query(self, sql: str, experiment: str | None = None) -> pl.DataFrame:
        """The rows of a query in Polars SQL, as `patchsae query` gives them.

        It sees the tables of the whole store, or those of one experiment. Raises UserError if the query is not
        valid.

        >>> patchsae.open(STORE).query("SELECT sae, count(*) AS n FROM latents GROUP BY sae").height
        1
        """
        return execute(self.store, sql, experiment)

    def status(self, experiment: str | None = None) -> pl.DataFrame:
        """Every artifact of the store, or of one experiment.

        Columns: stage, key, state, path, bytes, and names (its addresses in experiments).
        """
        columns = ("stage", "key", "state", "path", "bytes", "names")
        rows = status_rows(self.store, experiment)
        return pl.DataFrame([{name: row[name] for name in columns} for row in rows])

    def artifact(self, word: str, experiment: str | None = None) -> Artifact:
        """An artifact by its address, such as `statistics/statistics`, or by the first digits of its key.

        Its `.manifest` says what it was made from; `.scan(table)` and `.read(file)` read it. Raises UserError
        if there is no such artifact, if there are several, or if it is damaged.
        """
        return find(self.store, word, experiment)

    def sae(self, name: str, experiment: str | None = None, evaluation: str | None = None) -> OpenSae:
        """An SAE by its name.

        `experiment` is needed if several experiments have different SAEs of that name; earlier versions of an
        experiment are looked at only if it names them. `evaluation` is needed if several evaluations of kind
        `statistics` were made of the SAE with its own backbone. Raises UserError if no experiment has the SAE, if it has not been
        built, or if several experiments have different ones.
        """
        found = []
        for of, record in records_of(self.store, experiment).items():
            nodes = (record.nodes.get(f"{stage}/{name}") for stage in SAE_STAGES)
            found += [Place(of, record, node) for node in nodes if node is not None]
        if not found:
            known = ", ".join(sorted(set(self.saes["sae"].drop_nulls()))) or "none"
            raise UserError(f"sae {name}: no experiment of this store has it (there are {known}).")
        built = [place for place in found if self.store.is_usable(place.node.stage, place.node.key)]
        if not built:
            raise UserError(
                f"sae {name}: {found[0].experiment} names it, but it has not been built (or is damaged); run that."
            )
        found, first = built, built[0]
        if len({place.node.key for place in found}) > 1:
            several = ", ".join(place.experiment for place in found)
            raise UserError(
                f"sae {name}: experiments have different ones ({several}); say which: "
                f"sae({name!r}, experiment={first.experiment!r})."
            )
        artifact = find(self.store, first.node.key, stages=(first.node.stage,))
        return OpenSae(self.store, name, tuple(found), artifact, evaluation)

    def compare(self, first: str, second: str, experiment: str | None = None) -> pl.DataFrame:
        """For each latent of the SAE `first`, the most similar latent of the SAE `second`.

        Columns: latent, match (the latent of `second` with the largest cosine between decoder rows), cosine,
        and mutual (whether `latent` is also the most similar one to `match`). `experiment` is needed as in
        `sae`. Raises UserError if the SAEs take activations of different widths.

        >>> patchsae.open(STORE).compare("relu", "relu")["cosine"].min() > 0.999
        True
        """
        a, b = (self.sae(name, experiment).weights for name in (first, second))
        if a.width != b.width:
            raise UserError(
                f"compare: {first} takes {a.width} channels and {second} {b.width}; choose SAEs of one backbone."
            )
        rows_a, rows_b = normalize(a.W_dec, dim=1), normalize(b.W_dec, dim=1)
        match, cosine = _best(rows_a, rows_b)
        back, _ = _best(rows_b, rows_a)
        latent = np.arange(a.n_latents)
        return pl.DataFrame(
            {"latent": latent, "match": match, "cosine": cosine, "mutual": back[match] == latent}
        )


def _best(rows: torch.Tensor, others: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """For each row of `rows`, the index of the row of `others` with the largest cosine, and that cosine.

    All rows have length 1. Some rows are computed at a time, since the matrix of all cosines may be large.
    """
    found = [(block @ others.T).max(dim=1) for block in rows.split(1024)]
    indices = torch.cat([one.indices for one in found]).numpy()
    return indices, torch.cat([one.values for one in found]).numpy()


@dataclass(frozen=True)
class OpenSae:
    """One SAE of a store: its tables, weights, and latents on images. Get one with `OpenStore.sae`."""

    store: Store
    name: str
    places: tuple[Place, ...]
    artifact: Artifact
    evaluation: str | None = None

    def __repr__(self) -> str:
        n_latents = self.artifact.manifest.summary.get("n_latents")
        experiments = ", ".join(place.experiment for place in self.places)
        return f"OpenSae({self.name} of {experiments}, {n_latents} latents, {self.artifact.path})"

    @cached_property
    def weights(self) -> Sae:
        """`W_enc` [d, S], `b_enc` [S], `W_dec` [S, d], `b_dec` [d] and `threshold` [S] or `k`, on the CPU."""
        return load_sae(self.artifact)

    @property
    def config(self) -> dict[str, Any]:
        """The config it was trained or imported with; fields that are in no key are left out."""
        return self.artifact.manifest.config

    @cached_property
    def statistics(self) -> Artifact:
        """The artifact of the evaluation `statistics` of this SAE, which has the tables per latent.

        If `evaluation` names none, it is the one on the activations of the SAE's own backbone. Raises UserError if
        there is none, or if there are several of these.
        """
        made: dict[str, str] = {}
        own: dict[str, str] = {}
        for place in self.places:
            for address, node in place.record.nodes.items():
                name = node.names.get("evaluation", address)
                if (
                    node.stage == "statistics"
                    and self.evaluation in (None, name)
                    and self.store.is_usable(node.stage, node.key)
                    and self.store.at(node.stage, node.key).manifest.inputs["sae"] == self.artifact.key
                ):
                    made.setdefault(node.key, f"{place.experiment}: {name}")
                    if node.names.get("backbone") == place.node.names.get("backbone"):
                        own.setdefault(node.key, made[node.key])
        made = own or made
        if not made:
            named = f" named {self.evaluation}" if self.evaluation else ""
            raise UserError(
                f"sae {self.name}: has no evaluation of kind `statistics`{named} in this store; add one and run it."
            )
        if len(made) > 1:
            raise UserError(
                f"sae {self.name}: has several evaluations ({', '.join(made.values())}); name one: "
                f"sae({self.name!r}, experiment=..., evaluation=...)."
            )
        [key] = made
        return find(self.store, key, stages=("statistics",))

    @property
    def latents(self) -> pl.LazyFrame:
        """One row per latent: frequency, mean activation, label entropy, ...; see `patchsae tables`."""
        return self.statistics.scan("latents")

    @property
    def class_latents(self) -> pl.LazyFrame:
        """One row per class and latent, if an image of the class fires the latent."""
        return self.statistics.scan("class_latents")

    @property
    def training(self) -> pl.LazyFrame:
        """The training metrics, one row per logged step. Raises UserError for an imported SAE."""
        return self.artifact.scan("training")

    def top_images(self, latent: int, k: int | None = None) -> pl.DataFrame:
        """The top images of a latent: those it is strongest on, strongest first; all that were kept, or `k`.

        Columns: rank, image (row of the table `images`), source, path (null if images are not files),
        class_name, activation (mean over tokens), token (the one with the largest activation) and
        token_activation. Raises UserError if the SAE has no such latent, or no statistics.

        >>> patchsae.open(STORE).sae("relu").top_images(0).columns[:4]
        ['rank', 'image', 'source', 'path']
        """
        self._check(latent)
        rows = self.statistics.scan("latent_images").filter(pl.col("latent") == latent)
        originals = self._originals
        folder = originals.folder
        found = (
            rows.join(originals.index.scan("images").select("image", "source", "class_name"), on="image")
            .sort("rank")
            .select(
                "rank",
                "image",
                "source",
                (pl.lit(f"{folder}/") + pl.col("source") if folder else pl.lit(None, pl.String)).alias(
                    "path"
                ),
                "class_name",
                "activation",
                "token",
                "token_activation",
            )
            .collect()
        )
        return found if k is None else found.head(k)

    def encode(self, images: ImageLike | Iterable[ImageLike]) -> EncodedImages:
        """The latents of images: of a file, a folder (all images below it), a PIL image, or several of these.

        It runs the experiment's backbone on the CPU. Images are turned upright and put on a background as those
        of the SAE's dataset are. Raises UserError if there is no image, if an image cannot be read, or if the
        backbone's weights have changed since the experiment was run.
        """
        names: list[str] = []
        pixels: list[torch.Tensor] = []
        for name, image in _opened(images, self._place.reading):
            n_before = sum(name == other or other.startswith(f"{name} (") for other in names)
            # Images that are given twice stay two.
            names.append(f"{name} ({n_before + 1})" if n_before else name)
            pixels.append(self.backbone.preprocess(image))
        found = []
        if not pixels:
            raise UserError("encode: no images were given; give a file, a folder or an image.")
        for start in range(0, len(pixels), IMAGES_PER_BATCH):
            x = own_activations(self.backbone, pixels[start : start + IMAGES_PER_BATCH])
            found.append(self._rows(x, names[start : start + IMAGES_PER_BATCH], self.backbone.layout))
        return EncodedImages(pl.concat(found), names, self.backbone.layout)

    def map(self, image: ImageLike | int, latent: int) -> np.ndarray:
        """A latent's activation on every patch of an image: float32 [rows, columns].

        `image` is a file, a PIL image, or a row number of the dataset of `statistics`.

        >>> patchsae.open(STORE).sae("relu").map(0, 3).shape
        (8, 8)
        """
        self._check(latent)
        if isinstance(image, int):
            return self.encode_row(image).map(image, latent)
        encoded = self.encode(image)
        return encoded.map(encoded.images[0], latent)

    def encode_row(self, image: int) -> EncodedImages:
        """The latents of row `image` of the dataset of `statistics`, from the cached activations.

        Raises UserError if the dataset has no such row.
        """
        activations = Activations(input_of(self.store, self.statistics, "activations", "extract"))
        x = cached_activations(activations, image)
        return EncodedImages(self._rows(x, [image], activations.layout), [image], activations.layout)

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone whose activations the SAE takes, on the CPU.

        Raises UserError if the store's record of the experiment is too old, or if the weights have changed.
        """
        extracted = input_of(self.store, self.artifact, "activations", "extract")
        return recorded_backbone(self.store, self._place, extracted)

    @property
    def _place(self) -> Place:
        """The SAE in the first experiment whose record says where images and weights are."""
        return next((place for place in self.places if place.is_whole), self.places[0])

    @cached_property
    def _originals(self) -> Originals:
        """The images that `statistics` was made on."""
        made = [
            Place(place.experiment, place.record, node)
            for place in self.places
            for node in place.record.nodes.values()
            if node.key == self.statistics.key and place.is_whole
        ]
        return Originals(input_of(self.store, self.statistics, "images", "index"), made[0] if made else None)

    @cached_property
    def _encoder(self) -> LatentEncoder:
        return LatentEncoder(self.weights)

    def _rows(self, x: torch.Tensor, names: Sequence[str | int], layout: TokenLayout) -> pl.DataFrame:
        return latent_rows(self._encoder, x, names, layout)

    def _check(self, latent: int) -> None:
        n_latents = int(self.artifact.manifest.summary["n_latents"] or 0)
        if not 0 <= latent < n_latents:
            raise UserError(f"latent {latent}: {self.name} has the latents 0 to {n_latents - 1}.")


@dataclass(frozen=True)
class EncodedImages:
    """The latents of some images.

    `frame` has one row per token and latent above 0, with the columns image (as in `images`), token, latent
    and activation. `layout` is the order of the tokens; learned prompt tokens have no rows.
    """

    frame: pl.DataFrame
    images: list[Any]
    layout: TokenLayout

    def top(self, k: int = 10) -> pl.DataFrame:
        """The `k` strongest latents of each image, strongest first.

        Columns: image, latent, activation (mean over tokens), token (the one with the largest activation) and
        token_activation.
        """
        return strongest(self.frame, self.layout, k)

    def map(self, image: Any, latent: int) -> np.ndarray:
        """A latent's activation on every patch of an image: float32 [rows, columns].

        `image` is one of `images`. It is all 0 for a latent that is active nowhere.
        """
        found = self.frame.filter(pl.col("image") == image, pl.col("latent") == latent)
        return patch_map(found, self.layout)


def _opened(images: ImageLike | Iterable[ImageLike], reading: Reading) -> Iterable[tuple[str, Image.Image]]:
    """(name, RGB image) of every image in `images`, in order; the name of a file is its path."""
    several = [images] if isinstance(images, str | os.PathLike | Image.Image) else list(images)
    for number, one in enumerate(several):
        files: Sequence[Path | Image.Image]
        if isinstance(one, Image.Image):
            files = [one]
        else:
            path = Path(one).expanduser()
            files = image_files(path) if path.is_dir() else [path]
            if not files:
                raise UserError(f"{path}: no images found below it.")
        for file in files:
            name = f"image {number}" if isinstance(file, Image.Image) else str(file)
            try:
                if isinstance(file, Image.Image):
                    yield name, as_rgb(file, reading)
                else:
                    yield name, decode_rgb(read_file(file), reading)
            except OSError as error:
                raise UserError(f"{name}: cannot be read as an image ({reason(error)}).") from None
