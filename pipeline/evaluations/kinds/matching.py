"""Evaluation `matching`: which latents of two SAEs are the same, by their decoders and by what they respond to.

Each SAE takes the activations of its own backbone, on the same images. So an SAE that was trained on an adapted
backbone can be compared with that of the backbone before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from patchsae.pipeline.activations.parts import PartImages
from patchsae.pipeline.core.config import OptionalDatasetName, SaeName
from patchsae.pipeline.core.graph import Names
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.stage import Inputs, PartStage, Runtime, Stage, Within
from patchsae.pipeline.evaluations.evaluated import (
    EvaluatedImages,
    choose_encoders,
    open_encoder,
)
from patchsae.pipeline.evaluations.evaluation import EvaluationConfig, ImagesConfig, Wiring
from patchsae.pipeline.evaluations.foreseen import foresee
from patchsae.pipeline.evaluations.matching.correlation import best_correlations, weighted_mean
from patchsae.pipeline.evaluations.matching.decoders import Assignment, assign, largest_cosines
from patchsae.pipeline.evaluations.matching.tables import MATCHING, MATCHING_LATENTS
from patchsae.pipeline.saes.encode import LatentEncoder
from patchsae.pipeline.saes.sae import load_sae
from patchsae.pipeline.saes.sparse.latents import images_per_block
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Builder
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import Summary
from patchsae.storage.scratch import ScratchArrays
from patchsae.storage.tables import expected_bytes

SIDES = ("first", "second")
_BYTES_PER_ROW = 40


class MatchingConfig(EvaluationConfig, ImagesConfig):
    """The latents of two SAEs beside each other."""

    kind: Literal["matching"] = "matching"
    first: SaeName
    """An SAE."""
    second: SaeName
    """Another SAE, such as one that was trained on an adapted backbone, or with another seed."""
    dataset: OptionalDatasetName = None
    """The images on which activations are correlated; if not given, those that the first SAE was trained on."""
    split: str = "test"
    """The split of these images."""
    limit: int | None = Field(1000, ge=1)
    """At most this many images are used: the first ones, since a split's images are in a fixed pseudo-random order.
    All their latents are kept in memory at once."""
    tokens: Literal["all", "patches", "with_prompts"] = "all"
    """The tokens of an image that are used."""
    over: Literal["tokens", "images"] = "tokens"
    """What activations are correlated over: single tokens, or images with a latent's mean over their tokens, which also
    compares towers of other patches."""
    n_exact: Annotated[int, Field(ge=0)] = 4096
    """Up to so many alive latents of each SAE, all pairs of decoder rows are compared, and the assignment is exact."""
    n_candidates: Annotated[int, Field(ge=1)] = 32
    """With more, each latent can be assigned to so many latents with the largest cosines."""

    @classmethod
    def stage(cls) -> Stage:
        return STAGE

    def _dataset(self, wiring: Wiring) -> str:
        return self.dataset or wiring.sae(self.first).dataset

    def names(self, wiring: Wiring, evaluation: str) -> Names:
        backbones = {wiring.sae(getattr(self, side)).backbone for side in SIDES}
        return Names(
            self._dataset(wiring), backbones.pop() if len(backbones) == 1 else None, evaluation=evaluation
        )

    def inputs(self, wiring: Wiring) -> dict[str, str]:
        dataset = self._dataset(wiring)
        found = {"images": wiring.index(dataset)}
        for side in SIDES:
            name = getattr(self, side)
            found[f"{side} sae"] = wiring.train(name)
            found[f"{side} activations"] = wiring.extract(dataset, wiring.sae(name).backbone)
        return found

    def rows(self, inputs: Inputs) -> np.ndarray:
        return self.rows_of(inputs["images"], self.split)


def _side(inputs: Mapping[str, Any], side: str) -> dict[str, Any]:
    """The inputs of one SAE, by the roles that other evaluations give them."""
    return {
        "images": inputs["images"],
        "sae": inputs[f"{side} sae"],
        "activations": inputs[f"{side} activations"],
    }


def _prepare(config: MatchingConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> int:
    if config.over == "tokens":
        layouts = [Activations(inputs[f"{side} activations"]).layout for side in SIDES]
        sizes = [len(layout.select(config.tokens)) for layout in layouts]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"matching: an image has {sizes[0]} tokens in the backbone of `{config.first}` and {sizes[1]} in that of "
                f"`{config.second}`; write `over: images`."
            )
    choose_encoders({side: _side(inputs, side) for side in SIDES}, out, runtime.device)
    return len(EvaluatedImages(_side(inputs, "first"), config.rows(inputs), runtime.device).parts)


class _Worker:
    """Encodes the images of a part with both SAEs, and keeps the entries."""

    def __init__(self, config: MatchingConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> None:
        self.config, self.device = config, runtime.device
        self.images = EvaluatedImages(_side(inputs, "first"), config.rows(inputs), runtime.device)
        self.second = Activations(inputs["second activations"])
        self.encoders = [open_encoder(_side(inputs, side), out, runtime.device, side) for side in SIDES]
        layouts = (self.images.activations.layout, self.second.layout)
        self.tokens = [layout.select(config.tokens) for layout in layouts]

    @torch.inference_mode()
    def __call__(self, part: int, within: Within) -> Mapping[str, np.ndarray]:
        second = PartImages(self.second, self.images.parts[part], self.device)
        found: dict[str, list[np.ndarray]] = {
            f"{side} {name}": [] for side in SIDES for name in ("n", "latent", "value")
        }
        largest = max(encoder.sae.n_latents for encoder in self.encoders)
        step = images_per_block(largest, max(map(len, self.tokens)))
        for rows, x, _ in self.images.blocks(part, step, within):
            of_sides = zip(SIDES, self.encoders, (x, second.take(rows)), self.tokens, strict=True)
            for side, encoder, values, tokens in of_sides:
                entries = self._entries(encoder, values[:, tokens.start : tokens.stop])
                for name, array in zip(("n", "latent", "value"), entries, strict=True):
                    found[f"{side} {name}"].append(array)
        return {name: np.concatenate(arrays) for name, arrays in found.items()}

    def _entries(self, encoder: LatentEncoder, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(entries of each token or image, their latents, their values) of activations [B, T, d]."""
        latents = encoder(x.flatten(0, 1))
        if self.config.over == "tokens":
            return (
                latents.offsets.diff().cpu().numpy(),
                latents.latent.cpu().numpy().astype(np.int32),
                latents.value.cpu().numpy(),
            )
        cell = latents.token() // x.shape[1] * latents.n_latents + latents.latent.long()
        cells, where = cell.cpu().unique(return_inverse=True)
        total = torch.zeros(len(cells), dtype=torch.float64).index_add_(
            0, where, latents.value.cpu().double()
        )
        image, latent = np.divmod(cells.numpy(), latents.n_latents)
        n = np.bincount(image, minlength=len(x))
        return n, latent.astype(np.int32), (total / x.shape[1]).float().numpy()


def _merge(
    config: MatchingConfig, inputs: Inputs, out: Builder, parts: Sequence[ScratchArrays], runtime: Runtime
) -> Summary:
    from scipy.sparse import csr_array

    saes = {side: load_sae(inputs[f"{side} sae"]) for side in SIDES}
    matrices = []
    for side in SIDES:
        n, latent, value = (
            np.concatenate([arrays[f"{side} {name}"] for arrays in parts])
            for name in ("n", "latent", "value")
        )
        ends = np.concatenate([[0], np.cumsum(n)])
        matrices.append(csr_array((value, latent, ends), shape=(len(n), saes[side].n_latents)))
    masses = [np.asarray(one.sum(axis=0, dtype=np.float64)).ravel() for one in matrices]
    alive = [np.flatnonzero(mass > 0) for mass in masses]
    with runtime.reporter.bar("matching, correlations", saes["first"].n_latents, "latents") as bar:
        correlated = best_correlations(matrices[0], matrices[1], bar.advance)
    rows = [saes[side].W_dec[torch.from_numpy(own)] for side, own in zip(SIDES, alive, strict=True)]
    if saes["first"].width == saes["second"].width:
        pairs = assign(rows[0], rows[1], config.n_exact, config.n_candidates)
        nearest = [largest_cosines(rows[0], rows[1]), largest_cosines(rows[1], rows[0])]
    else:
        nothing = np.zeros(0, np.int64)
        pairs = Assignment(nothing, nothing, np.zeros(0), False)
        nearest = [np.full(len(own), np.nan) for own in alive]
    table: list[dict[str, Any]] = []
    columns: dict[str, list[np.ndarray]] = {column.name: [] for column in MATCHING_LATENTS.columns}
    summary: Summary = {"n_images": len(config.rows(inputs)), "n_assigned": len(pairs.first)}
    for i, side in enumerate(SIDES):
        own, mine, others = alive[i], (pairs.first, pairs.second)[i], (pairs.second, pairs.first)[i]
        assigned, cosine = np.full(len(own), -1), np.full(len(own), np.nan)
        assigned[mine], cosine[mine] = alive[1 - i][others], pairs.cosine
        best, mass = correlated[i], masses[i][own]
        of_alive = best.correlation[own]
        found = {
            "side": np.full(len(own), side, object),
            "latent": own,
            "mass": mass,
            "assigned": assigned,
            "assigned_cosine": cosine,
            "nearest_cosine": nearest[i],
            "correlated": best.latent[own],
            "correlation": of_alive,
        }
        for name, values in found.items():
            columns[name].append(values)
        row = {
            "side": side,
            "key": inputs[f"{side} sae"].key,
            "n_images": summary["n_images"],
            "over": config.over,
            "n_latents": saes[side].n_latents,
            "n_alive": len(own),
            "n_assigned": len(mine),
            "exact": pairs.is_exact,
            "assigned_cosine": float(pairs.cosine.mean()) if len(mine) else None,
            "nearest_cosine": weighted_mean(nearest[i], np.ones(len(own))),
            "mppc": weighted_mean(of_alive, np.ones(len(own))),
            "wmppc": weighted_mean(of_alive, mass),
        }
        table.append(row)
        shown = ("n_alive", "assigned_cosine", "wmppc")
        summary |= {f"{side}_{name}": row[name] for name in shown if row[name] is not None}
    out.write_table(MATCHING, {c.name: [row[c.name] for row in table] for c in MATCHING.columns})
    out.write_table(MATCHING_LATENTS, {name: _nullable(values) for name, values in columns.items()})
    return summary


def _nullable(pieces: Sequence[np.ndarray]) -> list[Any]:
    """The values of a column, with None for NaN and for the latent -1."""
    values = np.concatenate(pieces)
    known = values >= 0 if values.dtype.kind == "i" else values == values
    return [one if is_known else None for one, is_known in zip(values.tolist(), known.tolist(), strict=True)]


def _predict(config: MatchingConfig, inputs: Upstreams) -> Prediction:
    n_bytes, scratch = (
        MANIFEST_BYTES + expected_bytes(MATCHING, 2, 40) + expected_bytes(MATCHING_LATENTS, 0, 0),
        0.0,
    )
    effort = []
    for side in SIDES:
        known = foresee(config, config.split, _side(inputs, side))
        if known is None:
            return Prediction()
        n_bytes += known.n_latents * _BYTES_PER_ROW
        scratch += 8 * known.n_images * known.tokens * known.l0
        effort += known.encoding()
    return Prediction({}, n_bytes, round(scratch), effort)


STAGE = PartStage(
    name="matching",
    version=1,
    section="evaluations",
    description="Which latents of two SAEs are the same.",
    prepare=_prepare,
    worker=_Worker,
    merge=_merge,
    predict=_predict,
)
