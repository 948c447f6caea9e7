"""The pipeline needs what the Protocols say and nothing more: a backbone and an objective of a few lines go through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from patchsae.pipeline.backbones.backbone import Backbone, BackboneConfig, Outline
from patchsae.pipeline.core.stage import Inputs, Runtime
from patchsae.pipeline.evaluations.kinds.masking import MaskingConfig
from patchsae.pipeline.evaluations.kinds.reconstruction import ReconstructionConfig
from patchsae.pipeline.evaluations.kinds.statistics import StatisticsConfig
from patchsae.pipeline.experiment.dag import Dag
from patchsae.pipeline.images.datasets.digits import DigitsConfig
from patchsae.pipeline.saes.sae import Sae, load_sae
from patchsae.pipeline.training.objective import Gradients, Objective, TrainedSaeConfig
from patchsae.pipeline.training.process_group import ALONE, Ranks
from patchsae.storage.activations import Activations
from patchsae.storage.store import Store
from patchsae.storage.tokens import TokenLayout
from tests.support.nodes import run_all

WIDTH = 8


class FakeBackbone:
    """Pixels of a 4 x 4 grid times a matrix, with a mean token before them and two constant ones behind."""

    n_blocks, hook_block, width, image_size, logit_scale = 2, 0, WIDTH, (4, 4), 10.0
    layout = TokenLayout(1, (4, 4), 2)

    def __init__(self) -> None:
        self.matrix = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)
        self.settings: dict[str, Any] = {"preprocess": "4 x 4"}

    def preprocess(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(image.resize((4, 4)), np.float32) / 255).permute(2, 0, 1)

    def head(self, images: Tensor) -> Tensor:
        patches = images.flatten(2).transpose(1, 2) @ self.matrix
        ends = torch.ones(len(images), 2, WIDTH)
        return torch.cat([patches.mean(dim=1, keepdim=True), patches, ends], dim=1)

    def tail(self, activations: Tensor) -> Tensor:
        return activations.mean(dim=1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float(len(text) % (i + 2)) for i in range(WIDTH)] for text in texts])

    def class_embeddings(
        self,
        names: Sequence[str],
        templates: Sequence[str],
        renormalise: bool,
        advance: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Not from prompts at all: learnt, so to speak."""
        return torch.eye(max(len(names), WIDTH))[: len(names), :WIDTH]

    def state(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}

    def to(self, device: str) -> Backbone:
        return self


class FakeBackboneConfig(BackboneConfig):
    kind: Literal["fake"] = "fake"

    def fingerprint(self) -> str:
        return "fake"

    def outline(self) -> Outline:
        fake = FakeBackbone
        return Outline(fake.n_blocks, fake.width, fake.layout, fake.image_size)

    def build(self, inputs: Inputs) -> Backbone:
        return FakeBackbone()


class FakeObjective:
    """Learns the decoder's bias alone."""

    def __init__(self, start: Sae) -> None:
        self.start = start
        self.parameters = {"b_dec": start.b_dec.clone()}
        self.state: dict[str, Tensor] = {}

    def gradients(self, x: Tensor, token: Tensor) -> Gradients:
        error = self.parameters["b_dec"] - x
        self.parameters["b_dec"].grad = 2 * error.mean(dim=0)
        loss = error.square().sum(dim=1).mean().item()
        return Gradients(self.parameters["b_dec"].expand_as(x), loss, 0.0, 0.0, 0.0, 0.0)

    def n_dead(self) -> int:
        return 0

    def sae(self) -> Sae:
        return Sae(self.start.W_enc, self.start.b_enc, self.start.W_dec, self.parameters["b_dec"])


class FakeSaeConfig(TrainedSaeConfig):
    kind: Literal["fake"] = "fake"

    def objective(self, sample: Tensor, tokens_per_image: int, ranks: Ranks = ALONE) -> Objective:
        return FakeObjective(self.start(sample, tokens_per_image))


@pytest.fixture
def dag() -> Dag:
    sae = {"dataset": "digits", "backbone": "fake", "n_latents": 16, "batch_size": 64, "n_steps": 30}
    return Dag(
        {"digits": DigitsConfig(n_images=60)},
        {"fake": FakeBackboneConfig()},
        {"fake": FakeSaeConfig(**sae, lr=0.05, lr_warmup_steps=0)},
        {
            "statistics": StatisticsConfig(sae="fake", tokens="patches", tau=0.0),
            "masking": MaskingConfig(statistics="statistics", tokens="patches", ks=(1, "all"), n_random=1),
            "reconstruction": ReconstructionConfig(sae="fake"),
        },
    )


def test_everything_runs_on_them(dag: Dag, store: Store) -> None:
    done = run_all(store, dag.all_nodes(), Runtime(checkpoint_seconds=0))
    activations = Activations(done["extract/digits-fake"])
    assert activations.layout == TokenLayout(1, (4, 4), 2)
    # What comes behind the patches is no patch and no token of the image.
    assert (activations.read(0, 60)[:, -2:] == 1).all()
    tokens = done["statistics/statistics"].scan("latent_images").collect()["token"]
    assert tokens.min() >= 1 and tokens.max() <= 16  # type: ignore[operator]
    b_dec = load_sae(done["train/fake"]).b_dec
    mean = torch.from_numpy(activations.read(0, 48)[:, :-2].astype(np.float32)).mean(dim=(0, 1))
    assert (b_dec - mean).norm() < 0.5 * mean.norm()
    assert done["masking/masking"].manifest.summary["n_images"] == 12
    assert done["reconstruction/reconstruction"].manifest.summary["n_tokens"] == 12 * 17
