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
from collections.abc import Callable, Iterable, Sequence
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
from patchsae.pipeline.backbones.towers.framing import Framing
from patchsae.pipeline.core.text import count
from patchsae.pipeline.images.files import image_files, read_file, reason
from patchsae.pipeline.images.originals import NoOriginal
from patchsae.pipeline.images.pixels import Reading, as_rgb, decode_rgb
from patchsae.pipeline.results import html
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
from patchsae.pipeline.results.framing import framing_of
from patchsae.pipeline.results.originals import Originals
from patchsae.pipeline.results.overlay import overlaid, sheet
from patchsae.pipeline.results.places import Place
from patchsae.pipeline.results.sql import execute
from patchsae.pipeline.results.status import status_rows
from patchsae.pipeline.results.tables import Catalog
from patchsae.pipeline.saes.encode import LatentEncoder
from patchsae.pipeline.saes.sae import Sae, load_sae
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import KEY_DIGITS
from patchsae.storage.store import Store
from patchsae.storage.tokens import TokenLayout, layout_of

__all__ = ["EncodedImages", "OpenSae", "OpenStore", "Pictures", "UserError", "open"]

ImageLike = str | os.PathLike[str] | Image.Image
"""An image: its file, or a PIL image."""
_SHOWN_IMAGES, _SHOWN_LATENTS = 6, 4


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

    def _repr_html_(self) -> str:
        saes = self.saes.unique(maintain_order=True)
        rows = saes.with_columns(pl.col("key").str.head(KEY_DIGITS)).rows()
        return html.heading("Store", str(self.store.root)) + html.table(saes.columns, rows)

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

    def _repr_html_(self) -> str:
        numbers = self.artifact.manifest.summary.items()
        return html.heading(repr(self)) + html.table(("number", "value"), numbers)

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

    @property
    def masking(self) -> pl.LazyFrame:
        """The table `masking` of every evaluation of this SAE. Rows of one class have its `class_name`.

        Raises UserError if the store has no such table.

        >>> relu = patchsae.open(STORE).sae("relu")
        >>> relu.masking.filter(pl.col("class").is_not_null()).collect().height > 0
        True
        """
        of = pl.col("sae_key").cast(pl.String) == self.artifact.key
        return Catalog(self.store).scan("masking").filter(of)

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

    def gallery(self, latent: int, k: int = 8) -> Pictures:
        """The top images of a latent as pictures with its map, and the patch outlined on which it is largest.

        A notebook shows them. Images whose originals are gone or have changed are left out. Raises UserError as
        `top_images` does.

        >>> patchsae.open(STORE).sae("relu").gallery(0, k=2).captions
        [...]
        """
        top, maps = self.top_images(latent, k), []
        captions, left_out = [], 0
        for row in top.iter_rows(named=True):
            try:
                cell = self._layout.cell(row["token"])
                maps.append(
                    self.encode_row(row["image"])._picture(row["image"], latent, self._largest(latent), cell)
                )
            except NoOriginal:
                left_out += 1
                continue
            captions.append(f"{row['source']}, {row['class_name']}: {row['activation']:.4g}")
        title = f"Latent {latent} of {self.name}" + (
            f" ({count(left_out, 'picture is', 'pictures are')} gone)" if left_out else ""
        )
        return Pictures(title, maps, captions)

    def encode(self, images: ImageLike | Iterable[ImageLike]) -> EncodedImages:
        """The latents of images: of a file, a folder (all images below it), a PIL image, or several of these.

        It runs the experiment's backbone on the CPU. Images are turned upright and put on a background as those
        of the SAE's dataset are. Raises UserError if there is no image, if an image cannot be read, or if the
        backbone's weights have changed since the experiment was run.
        """
        files: dict[str, Path | Image.Image] = {}
        pixels: list[torch.Tensor] = []
        for name, file, image in _opened(images, self._place.reading):
            n_before = sum(name == other or other.startswith(f"{name} (") for other in files)
            # Images that are given twice stay two.
            files[f"{name} ({n_before + 1})" if n_before else name] = file
            pixels.append(self.backbone.preprocess(image))
        if not pixels:
            raise UserError("encode: no images were given; give a file, a folder or an image.")
        found, names = [], list(files)
        for start in range(0, len(pixels), IMAGES_PER_BATCH):
            x = own_activations(self.backbone, pixels[start : start + IMAGES_PER_BATCH])
            found.append(self._rows(x, names[start : start + IMAGES_PER_BATCH], self.backbone.layout))
        reading, framing = self._place.reading, framing_of(self._place)
        source = _Source(framing, lambda name: _read(files[name], reading))
        return EncodedImages(pl.concat(found), names, self.backbone.layout, source)

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
        rows = self._rows(x, [image], activations.layout)
        source = _Source(self._framing, self._originals.image)
        return EncodedImages(rows, [image], activations.layout, source)

    def picture(self, image: ImageLike | int, latent: int) -> Image.Image:
        """An image with a latent's map laid over it: an RGB image of 320 pixels at its longest side.

        `image` is as in `map`. The brightest colour stands for the latent's largest activation in `statistics`, or on
        this image if that is larger. What the model does not see of the image is dimmed.

        >>> patchsae.open(STORE).sae("relu").picture(0, 3).size
        (320, 320)
        """
        self._check(latent)
        encoded = self.encode_row(image) if isinstance(image, int) else self.encode(image)
        return encoded._picture(encoded.images[0], latent, self._largest(latent))

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone whose activations the SAE takes, on the CPU.

        Raises UserError if the store's record of the experiment is too old, or if the weights have changed.
        """
        extracted = input_of(self.store, self.artifact, "activations", "extract")
        return recorded_backbone(self.store, self._place, extracted)

    def _largest(self, latent: int) -> float:
        """The latent's largest activation in `statistics`; 0 if that is not known."""
        try:
            row = self.latents.filter(pl.col("latent") == latent).select("max_activation").collect()
        except UserError:
            return 0.0
        return float(row.item())

    @property
    def _layout(self) -> TokenLayout:
        return layout_of(input_of(self.store, self.statistics, "activations", "extract"))

    @property
    def _framing(self) -> Framing | None:
        """The framing of the backbone of `statistics`; None if no record says it."""
        place = self._originals.place
        return None if place is None or not place.is_whole else framing_of(place)

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
class _Source:
    """Where the pictures of encoded images are, and which part of them the model sees."""

    framing: Framing | None
    open: Callable[[Any], Image.Image]


@dataclass(frozen=True)
class Pictures:
    """Pictures with captions, which a notebook shows beside each other."""

    title: str
    images: list[Image.Image]
    captions: list[str]

    def sheet(self, columns: int = 4) -> Image.Image:
        """All of them on one picture, with their captions."""
        return sheet(self.images, self.captions, columns)

    def _repr_html_(self) -> str:
        return html.heading(self.title) + html.figures(self.images, self.captions)


@dataclass(frozen=True)
class EncodedImages:
    """The latents of some images.

    `frame` has one row per token and latent above 0, with the columns image (as in `images`), token, latent
    and activation. `layout` is the order of the tokens; learned prompt tokens have no rows.
    """

    frame: pl.DataFrame
    images: list[Any]
    layout: TokenLayout
    source: _Source | None = None

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

    def at(self, row: int, column: int, image: Any = None) -> pl.DataFrame:
        """The latents of a patch of an image, strongest first. Columns: latent and activation.

        `image` is one of `images`; the first one if not given. Raises UserError if there is no such patch or image.

        >>> patchsae.open(STORE).sae("relu").encode_row(0).at(3, 4).columns
        ['latent', 'activation']
        """
        rows, columns = self.layout.grid
        if not (0 <= row < rows and 0 <= column < columns):
            raise UserError(f"patch {row}, {column}: an image has {rows} rows of {columns} patches.")
        token = self.layout.select("patches")[row * columns + column]
        chosen = (pl.col("image") == self._one(image)) & (pl.col("token") == token)
        found = self.frame.filter(chosen).select("latent", "activation")
        return found.sort("activation", "latent", descending=[True, False])

    def picture(self, latent: int, image: Any = None) -> Image.Image:
        """An image with a latent's map laid over it: an RGB image of 320 pixels at its longest side.

        `image` is one of `images`; the first one if not given. The brightest colour stands for the latent's largest
        activation on it. Raises UserError if there is no such image, or if it is gone.
        """
        return self._picture(self._one(image), latent)

    def _one(self, image: Any) -> Any:
        if image is not None and image not in self.images:
            raise UserError(
                f"image {image}: was not encoded; there are {', '.join(map(str, self.images[:5]))}."
            )
        return self.images[0] if image is None else image

    def _picture(
        self, image: Any, latent: int, largest: float = 0.0, cell: tuple[int, int] | None = None
    ) -> Image.Image:
        if self.source is None or self.source.framing is None:
            raise UserError(
                f"image {image}: it is not known where its picture is, or how the model takes it."
            )
        values, opened = self.map(image, latent), self.source.open(image)
        box = self.source.framing.box(*opened.size, self.layout.grid)
        return overlaid(opened, values, box, max(largest, float(values.max())), cell)

    def _repr_html_(self) -> str:
        parts = []
        for image in self.images[:_SHOWN_IMAGES]:
            top = self.top(_SHOWN_LATENTS).filter(pl.col("image") == image)
            captions = [
                f"latent {row['latent']}: {row['activation']:.4g}" for row in top.iter_rows(named=True)
            ]
            parts.append(html.heading(str(image)))
            try:
                pictures = [self._picture(image, latent) for latent in top["latent"]]
                parts.append(html.figures(pictures, captions))
            except UserError as error:
                parts.append(html.table(("latent", "activation"), top.select("latent", "activation").rows()))
                parts.append(html.heading("", str(error)))
        n_more = len(self.images) - _SHOWN_IMAGES
        return "".join(parts) + (html.heading("", f"and {n_more} more images") if n_more > 0 else "")


def _opened(
    images: ImageLike | Iterable[ImageLike], reading: Reading
) -> Iterable[tuple[str, Path | Image.Image, Image.Image]]:
    """(name, file, RGB image) of every image in `images`, in order; the name of a file is its path."""
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
            yield name, file, _read(file, reading, name)


def _read(file: Path | Image.Image, reading: Reading, name: str = "image") -> Image.Image:
    try:
        if isinstance(file, Image.Image):
            return as_rgb(file, reading)
        return decode_rgb(read_file(file), reading)
    except OSError as error:
        told = name if isinstance(file, Image.Image) else file
        raise UserError(f"{told}: cannot be read as an image ({reason(error)}).") from None
