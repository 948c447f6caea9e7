"""Trains the SAEs of the quality benchmark, ours and SAELens', on the same tokens in the same order."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.worlds import Split, World, rows_of_split
from patchsae.pipeline.activations.parts import PartImages, part_rows
from patchsae.pipeline.activations.stream import Stream
from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.classification.zero_shot import ZeroShot
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.evaluations.reconstruction.ablation import REPLACED, Outcomes, kept
from patchsae.pipeline.images.tables import label_sets_of, rows_of
from patchsae.pipeline.saes import files
from patchsae.pipeline.saes.quality import evaluate
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.training import train
from patchsae.pipeline.training.initialisation import ENCODER_SCALES
from patchsae.pipeline.training.member import Member, learning_rate
from patchsae.pipeline.training.objective import TrainedSaeConfig
from patchsae.pipeline.training.objectives.batch_topk import BatchTopKConfig
from patchsae.pipeline.training.objectives.gated import GatedConfig
from patchsae.pipeline.training.objectives.jumprelu import JumpReluConfig
from patchsae.pipeline.training.objectives.matryoshka import MatryoshkaConfig
from patchsae.pipeline.training.objectives.relu_l1 import ReluL1Config
from patchsae.pipeline.training.objectives.topk import TopKConfig
from patchsae.pipeline.training.process_group import ALONE
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Artifact, Builder

BATCH = 1024
EVAL_BATCH, EVAL_TOKENS, TRAIN_TOKENS = 4096, 28_672, 40_960
OURS, PEER = "patchsae", "SAELens"


@dataclass(frozen=True)
class Kind:
    """An objective in both libraries: what sets its sparsity, and the values of it that reach L0 16 to 64.

    `at_64x` is the value for SAEs of 64 latents per channel; it gives L0 of about 32 at 16 per channel.
    """

    config: type[TrainedSaeConfig]
    sparsity: str
    ours: tuple[float, ...]
    at_64x: float
    architecture: str
    theirs: tuple[float, ...]


_KS = (16, 32, 64)
KINDS = {
    "topk": Kind(TopKConfig, "k", _KS, 32, "topk", _KS),
    "batch_topk": Kind(BatchTopKConfig, "k", _KS, 32, "batchtopk", _KS),
    "matryoshka": Kind(MatryoshkaConfig, "k", _KS, 32, "matryoshka_batchtopk", _KS),
    "jumprelu": Kind(
        JumpReluConfig,
        "l0_coefficient",
        (1.0, 0.4, 0.15, 0.06, 0.03),
        0.15,
        "jumprelu",
        (1.5, 0.5, 0.15, 0.05, 0.02, 0.007),
    ),
    "gated": Kind(
        GatedConfig,
        "l1_coefficient",
        (0.4, 0.25, 0.12, 0.06, 0.03, 0.015),
        0.12,
        "gated",
        (4, 2, 1, 0.5, 0.25, 0.12),
    ),
    "relu_l1": Kind(
        ReluL1Config,
        "l1_coefficient",
        (2.5e-3, 1.2e-3, 6e-4, 3e-4),
        1.2e-3,
        "standard",
        (8, 4, 2, 1, 0.5, 0.25),
    ),
}


@dataclass(frozen=True)
class Point:
    """One SAE, and the images that it is measured on.

    `sparsity` is k or the coefficient. `start` names an `encoder_scale` of ours (`pipeline.training.initialisation`),
    or is SAELens' `decoder_init_norm` as text.
    """

    world: World
    library: str
    kind: str
    sparsity: float
    start: str
    lr: float
    n_latents: int
    seed: int = 0
    n_steps: int = 600
    split: Split = "test"


@dataclass(frozen=True)
class Measured:
    """`dead` is the share of latents that never fire on the held-out tokens, `dead_train` on 40,960 training tokens.

    `kept` and `kl` are those of images of two objects; NaN where they were not measured.
    """

    l0: float
    fvu: float
    dead: float
    dead_train: float
    kept: float
    kl: float


class Bench:
    """Measures SAEs on the activations of one world."""

    def __init__(
        self,
        world: World,
        backbone: BackboneConfig,
        inputs: dict[str, Artifact],
        scratch: Path,
        two_objects: dict[str, Artifact] | None = None,
    ) -> None:
        self.world = world
        self.inputs = inputs
        self.activations = Activations(inputs["activations"])
        self.two_objects = two_objects
        self.zero_shot = ZeroShot.load(backbone, two_objects, "cpu") if two_objects else None
        self.scratch = scratch

    def measure(self, point: Point) -> Measured:
        """Trains the SAE of a point and measures it."""
        settings: dict[str, Any] = {
            "dataset": "-",
            "backbone": "-",
            "n_latents": point.n_latents,
            "batch_size": BATCH,
            "n_steps": point.n_steps,
            "lr": point.lr,
            "seed": point.seed,
            "shuffle_seed": point.seed,
            "dead_feature_window": 20,
            "lr_warmup_steps": 50,
            "lr_schedule": "trapezoid",
            "precision": "bfloat16",
        }
        kind = KINDS[point.kind]
        value = {kind.sparsity: int(point.sparsity) if kind.sparsity == "k" else point.sparsity}
        if point.library == OURS:
            sae = self._ours(kind.config(encoder_scale=point.start, **settings, **value))
        else:
            sae = self._theirs(TopKConfig(**settings), kind.architecture, float(point.start), **value)
        return self._evaluate(sae, point)

    def _stream(self, split: Split, batch: int, seed: int) -> Stream:
        return Stream(self.activations, rows_of_split(self.world, self.inputs["images"], split), batch, seed)

    def _evaluate(self, sae: Sae, point: Point) -> Measured:
        def over(split: Split, n_tokens: int) -> dict[str, Any]:
            batches = self._stream(split, EVAL_BATCH, 0).batches(0, n_tokens // EVAL_BATCH)
            return evaluate(sae, (batch.to_float32() for batch in batches))

        held_out, seen = over(point.split, EVAL_TOKENS), over("train", TRAIN_TOKENS)
        is_reported = point.split == "test" and point.n_latents <= 16 * sae.width
        kept_, kl = self._on_two_objects(sae, point.seed) if is_reported else (math.nan, math.nan)
        return Measured(
            held_out["l0"], held_out["fvu"], held_out["dead_fraction"], seen["dead_fraction"], kept_, kl
        )

    def _on_two_objects(self, sae: Sae, seed: int) -> tuple[float, float]:
        """(kept, KL) with the SAE's reconstruction in the place of every token: the share of images whose two colours
        have the two largest logits, of what the mean activation loses, and the divergence from the original's
        distribution in nats. NaN where there are no such images."""
        if self.zero_shot is None or self.two_objects is None:
            return math.nan, math.nan
        images, outcomes = self.two_objects["images"], Outcomes()
        activations = Activations(self.two_objects["activations"])
        rows, label_sets = rows_of(images, "two_objects"), label_sets_of(images)
        mean = self._stream("train", BATCH, seed).batch(0).to_float32().mean(dim=0)
        for part in part_rows(activations, rows):
            stored = PartImages(activations, part, "cpu")
            for block in np.array_split(part, math.ceil(len(part) / 100)):
                x = stored.take(block)
                x_hat = (sae.encode(x.flatten(0, 1)) @ sae.W_dec + sae.b_dec).view_as(x)
                sets = torch.from_numpy(label_sets.mask(block, self.zero_shot.classes))
                outcomes.add(self.zero_shot, x, x_hat, mean, sets, range(x.shape[1]))
        correct = dict(zip(REPLACED, outcomes.n_sets_correct.tolist(), strict=True))
        found = kept(*(correct[way] for way in ("reconstruction", "original", "mean")))
        kl = outcomes.kl_to_original[REPLACED.index("reconstruction")] / len(rows)
        return (math.nan if found is None else found), float(kl)

    def _ours(self, config: TrainedSaeConfig) -> Sae:
        stream = self._stream("train", BATCH, config.shuffle_seed)
        sample = stream.batch(0).to_float32()
        builder = Builder(Artifact("train", "", self.scratch))
        member = Member.begin(config, builder, sample, len(stream.tokens), ALONE)
        member.save = lambda: None  # type: ignore[method-assign]
        train.train([member], stream, Runtime(checkpoint_seconds=1e9), ALONE)
        if member.failure:
            raise member.failure
        return member.sae()

    def _theirs(self, config: TrainedSaeConfig, architecture: str, start: float, **settings: Any) -> Sae:
        """As its own trainer does: Adam, gradients clipped to 1, normalised inputs, its dead-latent window scaled."""
        from sae_lens.registry import get_sae_training_class
        from sae_lens.saes.sae import TrainStepInput

        stream = self._stream("train", BATCH, config.shuffle_seed)
        sample, n_latents = stream.batch(0).to_float32(), config.count_latents(0)
        if architecture == "matryoshka_batchtopk":
            settings["matryoshka_widths"] = [n_latents // n for n in (16, 8, 4, 2, 1)]
        torch.manual_seed(config.seed)
        sae_class, config_class = get_sae_training_class(architecture)
        sae = sae_class(
            config_class(
                d_in=sample.shape[1],
                d_sae=n_latents,
                apply_b_dec_to_input=True,
                decoder_init_norm=start,
                **settings,
            )
        )
        scale = math.sqrt(sample.shape[1]) / sample.norm(dim=1).mean().item()
        with torch.no_grad():
            sae.b_dec.copy_(sample.mean(dim=0) * scale)
        optimiser = torch.optim.Adam(sae.parameters(), lr=config.lr)
        since_fired = torch.zeros(n_latents)
        coefficients = {n: c.value if hasattr(c, "value") else c for n, c in sae.get_coefficients().items()}
        for step, batch in enumerate(stream.batches(1, config.n_steps + 1, 1)):
            x: Tensor = batch.to_float32()
            optimiser.param_groups[0]["lr"] = learning_rate(config, step)
            found = sae.training_forward_pass(
                step_input=TrainStepInput(
                    sae_in=x * scale,
                    coefficients=coefficients,
                    dead_neuron_mask=since_fired > config.dead_feature_window,
                    n_training_steps=step,
                    is_logging_step=False,
                )
            )
            optimiser.zero_grad()
            found.loss.backward()
            torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
            optimiser.step()
            fired = found.feature_acts.to_dense() if found.feature_acts.is_sparse else found.feature_acts
            since_fired = torch.where((fired > 0).any(dim=0), 0, since_fired + 1)
        with tempfile.TemporaryDirectory() as folder:
            sae.save_inference_model(folder)
            loaded = files.load(Path(folder), "saelens")
        return loaded.on_inputs_divided_by(scale)


STARTS = tuple(ENCODER_SCALES)
