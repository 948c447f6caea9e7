"""How well SAEs of every objective reconstruct at equal L0, beside SAELens' of the same objective and tokens.

On ShapesCLIP's activations of the shapes world, and of crops of the photographs that come with scikit-image and
scikit-learn. SAELens comes with `uv run --with-requirements benchmarks/peers.txt python -m benchmarks.quality`.

FVU at an L0 is interpolated between SAEs of several k, or coefficients: log FVU over log L0.

On the shapes world with one object nearly every SAE keeps all of the zero-shot accuracy. So what an SAE keeps is
measured on images of two objects: the share of images whose two colours have the two largest logits.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from benchmarks.report import Measurement, Measurements, parser, report
from patchsae.pipeline.activations.parts import PartImages, part_rows
from patchsae.pipeline.activations.stream import Stream
from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.classification.zero_shot import ZeroShot
from patchsae.pipeline.core.resources import Resources
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.evaluations.reconstruction.ablation import REPLACED, Outcomes, kept
from patchsae.pipeline.experiment.experiment import Experiment
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.pipeline.images.tables import label_sets_of, rows_of, split_range
from patchsae.pipeline.saes import files
from patchsae.pipeline.saes.quality import evaluate
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.training import train
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
from patchsae.storage.store import Store

L0S = (16, 32, 64)
N_LATENTS = 2048
BATCH = 1024
EVAL_BATCH, EVAL_TOKENS = 4096, 28_672
# Of 4e-3 and 1e-2, what gave TopK the lower FVU in each library.
LR, SAE_LENS_LR = 1e-2, 4e-3
# As short as the rows SAELens starts with.
ENCODER_SCALE = 0.1
_PHOTOGRAPHS = [
    "astronaut",
    "brick",
    "cat",
    "chelsea",
    "coffee",
    "colorwheel",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "motorcycle_left",
    "retina",
    "rocket",
    "camera",
    "coins",
    "moon",
    "page",
    "text",
]

Points = list[tuple[float, ...]]
"""L0, FVU, dead fraction, and on two objects the accuracy kept and the KL divergence, of one SAE each."""
_MEASURES = ("FVU", "dead", "two objects kept", "two objects KL")
_N_ZERO_SHOT = 2
TWO_OBJECTS = {"kind": "shapes", "seed": 1, "splits": {"two_objects": 600}, "label": "colour"}


def write_crops(folder: Path, n_train: int, n_test: int) -> None:
    """Crops of 64 to 192 pixels as 64 x 64 PNGs: from the left three quarters for train, from the right for test."""
    rng = np.random.default_rng(0)
    pictures = list(load_sample_images().images)
    for name in _PHOTOGRAPHS:
        if hasattr(skimage.data, name):
            try:
                pictures.append(getattr(skimage.data, name)())
            except (ModuleNotFoundError, OSError):
                continue  # Comes by download, or needs pooch for it.
    for split, n in (("train", n_train), ("test", n_test)):
        for i in range(n):
            picture = Image.fromarray(np.asarray(pictures[i % len(pictures)])).convert("RGB")
            side = int(rng.integers(64, min(192, picture.height, picture.width // 4) + 1))
            border = 3 * picture.width // 4
            low, high = (0, border - side) if split == "train" else (border, picture.width - side)
            left, top = int(rng.integers(low, high + 1)), int(rng.integers(0, picture.height - side + 1))
            path = folder / split / f"picture {i % len(pictures)}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.crop((left, top, left + side, top + side)).resize((64, 64)).save(path)


def inputs_of(
    store: Store, dataset: dict[str, Any], zero_shot: bool
) -> tuple[BackboneConfig, dict[str, Artifact]]:
    """ShapesCLIP, and what is made of a data set by it; a classifier only if it knows the words for its classes."""
    experiment = Experiment.model_validate(
        {
            "name": "quality",
            "datasets": {"images": dataset},
            "backbones": {"clip": {"kind": "shapes_clip", "extract": {"hook_block": -2}}},
            "saes": {"sae": {"kind": "topk", "dataset": "images", "backbone": "clip"}},
            "evaluations": {"evaluation": {"kind": "reconstruction", "sae": "sae"}},
        }
    )
    stages = {"activations": "extract", "images": "index", "weights": "weights"}
    if zero_shot:
        stages["classifier"] = "classifier"
    built = run(work_on(store, experiment, list(stages.values())), Runtime.here(Resources()))
    made = {artifact.stage: artifact for artifact in built.values()}
    return experiment.backbones["clip"], {role: made[stage] for role, stage in stages.items()}


class Bench:
    """Trains SAEs on the same tokens in the same order, ours or SAELens', and evaluates them on held-out images."""

    def __init__(
        self,
        backbone: BackboneConfig,
        inputs: dict[str, Artifact],
        n_steps: int,
        scratch: Path,
        two_objects: dict[str, Artifact] | None = None,
    ) -> None:
        self.inputs = inputs
        self.two_objects = two_objects
        self.zero_shot = ZeroShot.load(backbone, two_objects, "cpu") if two_objects else None
        self.scratch = scratch
        self.settings: dict[str, Any] = {
            "dataset": "-",
            "backbone": "-",
            "n_latents": N_LATENTS,
            "batch_size": BATCH,
            "n_steps": n_steps,
            "lr": LR,
            "encoder_scale": ENCODER_SCALE,
            "dead_feature_window": 20,
            "lr_warmup_steps": 50,
            "lr_schedule": "trapezoid",
        }
        self.config = TopKConfig(**self.settings)
        rows = split_range(inputs["images"], "train")
        self.stream = train._stream(self.config, Activations(inputs["activations"]), rows)
        self.sample = self.stream.batch(0).to_float32()

    def evaluate(self, sae: Sae) -> tuple[float, ...]:
        rows = split_range(self.inputs["images"], "test")
        stream = Stream(self.stream.activations, rows, EVAL_BATCH, self.config.shuffle_seed)
        batches = (batch.to_float32() for batch in stream.batches(0, EVAL_TOKENS // EVAL_BATCH))
        found = evaluate(sae, batches)
        measured = [float(found[name] or 0) for name in ("l0", "fvu", "dead_fraction")]
        return (*measured, *self._on_two_objects(sae))

    def _on_two_objects(self, sae: Sae) -> tuple[float, float]:
        """(kept, KL) with the SAE's reconstruction in the place of every token: the share of images whose two colours
        have the two largest logits, of what the mean activation loses, and the divergence from the original's
        distribution in nats. NaN where there are no such images."""
        if self.zero_shot is None or self.two_objects is None:
            return math.nan, math.nan
        images, outcomes = self.two_objects["images"], Outcomes()
        activations = Activations(self.two_objects["activations"])
        rows, label_sets = rows_of(images, "two_objects"), label_sets_of(images)
        mean = self.sample.mean(dim=0)
        for part in part_rows(activations, rows):
            stored = PartImages(activations, part, "cpu")
            for block in np.array_split(part, math.ceil(len(part) / 100)):
                x = stored.take(block)
                x_hat = (sae.encode(x.flatten(0, 1)) @ sae.W_dec + sae.b_dec).view_as(x)
                sets = torch.from_numpy(label_sets.mask(block, len(self.zero_shot.embeddings)))
                outcomes.add(self.zero_shot, x, x_hat, mean, sets)
        correct = dict(zip(REPLACED, outcomes.n_sets_correct.tolist(), strict=True))
        found = kept(*(correct[way] for way in ("reconstruction", "original", "mean")))
        kl = outcomes.kl_to_original[REPLACED.index("reconstruction")] / len(rows)
        return (math.nan if found is None else found), float(kl)

    def ours(self, kind: type[TrainedSaeConfig], **settings: Any) -> tuple[float, ...]:
        config = kind(**{**self.settings, **settings})
        member = Member.begin(
            config, Builder(Artifact("train", "", self.scratch)), self.sample, len(self.stream.tokens), ALONE
        )
        member.save = lambda: None  # type: ignore[method-assign]
        train.train([member], self.stream, Runtime(checkpoint_seconds=1e9), ALONE)
        return self.evaluate(member.sae())

    def _batches(self) -> Iterator[tuple[int, Tensor]]:
        batches = self.stream.batches(1, self.config.n_steps + 1, 1)
        return enumerate(batch.to_float32() for batch in batches)

    def sae_lens(self, name: str, **settings: Any) -> tuple[float, ...]:
        """As its own trainer does: Adam, gradients clipped to 1, normalised inputs, its dead-latent window scaled."""
        from sae_lens.registry import get_sae_training_class
        from sae_lens.saes.sae import TrainStepInput

        torch.manual_seed(0)
        sae_class, config_class = get_sae_training_class(name)
        sae = sae_class(
            config_class(d_in=self.sample.shape[1], d_sae=N_LATENTS, apply_b_dec_to_input=True, **settings)
        )
        with torch.no_grad():
            sae.b_dec.copy_(self.sample.mean(dim=0))
        scale = math.sqrt(self.sample.shape[1]) / self.sample.norm(dim=1).mean().item()
        with torch.no_grad():
            sae.b_dec.mul_(scale)
        config = self.config.model_copy(update={"lr": SAE_LENS_LR})
        optimiser = torch.optim.Adam(sae.parameters(), lr=SAE_LENS_LR)
        since_fired = torch.zeros(N_LATENTS)
        coefficients = {n: c.value if hasattr(c, "value") else c for n, c in sae.get_coefficients().items()}
        for step, x in self._batches():
            optimiser.param_groups[0]["lr"] = learning_rate(config, step)
            found = sae.training_forward_pass(
                step_input=TrainStepInput(
                    sae_in=x * scale,
                    coefficients=coefficients,
                    dead_neuron_mask=since_fired > self.config.dead_feature_window,
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
        return self.evaluate(loaded.on_inputs_divided_by(scale))


def at_l0(points: Points, l0: float) -> tuple[float, ...]:
    """The `_MEASURES` at an L0, from the two SAEs nearest to it; NaN if it is far from what they have."""
    points = sorted(points)
    l0s, fvus, *others = (np.array(values) for values in zip(*points, strict=True))
    if not 0.8 * l0s[0] <= l0 <= 1.25 * l0s[-1]:
        return (math.nan,) * len(_MEASURES)
    i = int(np.clip(np.searchsorted(l0s, l0), 1, len(l0s) - 1))
    share = math.log(l0 / l0s[i - 1]) / math.log(l0s[i] / l0s[i - 1])
    log_fvu = (1 - share) * math.log(fvus[i - 1]) + share * math.log(fvus[i])
    between = [(1 - share) * values[i - 1] + share * values[i] for values in others]
    # All but the divergence are shares.
    linear = [
        float(np.clip(value, 0, math.inf if nth == len(others) - 1 else 1))
        for nth, value in enumerate(between)
    ]
    return (math.exp(log_fvu), *linear)


_SELECTED = {
    "topk": (TopKConfig, "topk", {}),
    "batch_topk": (BatchTopKConfig, "batchtopk", {}),
    "matryoshka": (
        MatryoshkaConfig,
        "matryoshka_batchtopk",
        {"matryoshka_widths": [N_LATENTS // n for n in (16, 8, 4, 2, 1)]},
    ),
}
_PENALISED: dict[str, tuple[type[TrainedSaeConfig], str, tuple[float, ...], str, tuple[float, ...]]] = {
    # Our config, the coefficient's name in both, our values; SAELens' architecture and values.
    "relu_l1": (
        ReluL1Config,
        "l1_coefficient",
        (2.5e-3, 1.2e-3, 6e-4, 3e-4),
        "standard",
        (8, 4, 2, 1, 0.5, 0.25),
    ),
    "jumprelu": (
        JumpReluConfig,
        "l0_coefficient",
        (1.0, 0.4, 0.15, 0.06, 0.03),
        "jumprelu",
        (1.5, 0.5, 0.15, 0.05, 0.02, 0.007),
    ),
    "gated": (
        GatedConfig,
        "l1_coefficient",
        (0.4, 0.25, 0.12, 0.06, 0.03, 0.015),
        "gated",
        (4, 2, 1, 0.5, 0.25, 0.12),
    ),
}


def measure(where: str, bench: Bench, kinds: list[str]) -> Measurements:
    """FVU and dead latents of every objective at every L0, and SAELens' over ours."""
    found: Measurements = {}
    with_peer = importlib.util.find_spec("sae_lens") is not None

    measures = _MEASURES if bench.zero_shot else _MEASURES[:-_N_ZERO_SHOT]

    def add(kind: str, l0: int, ours: tuple[float, ...], theirs: tuple[float, ...]) -> None:
        name = f"{where}: {kind}, L0 {l0}"
        for measure, value in zip(measures, ours, strict=False):
            found[f"{name}: {measure}"] = Measurement(value=value, target=None, unit="")
        if with_peer:
            for measure, value in zip(measures, theirs, strict=False):
                found[f"{name}: SAELens' {measure}"] = Measurement(value=value, target=None, unit="")
            found[f"{name}: SAELens' FVU / ours"] = Measurement(
                value=theirs[0] / ours[0], target=0.98, unit="ratio"
            )
        print(
            {key: round(value["value"], 4) for key, value in found.items() if key.startswith(name)},
            flush=True,
        )

    for kind in kinds:
        if kind in _SELECTED:
            config, peer, settings = _SELECTED[kind]
            points = [bench.ours(config, k=k) for k in L0S]
            their_points = [bench.sae_lens(peer, k=k, **settings) for k in L0S] if with_peer else []
        else:
            penalised, coefficient, values, peer, their_values = _PENALISED[kind]
            points = [bench.ours(penalised, **{coefficient: value}) for value in values]
            their_points = (
                [bench.sae_lens(peer, **{coefficient: v}) for v in their_values] if with_peer else []
            )
        print(kind, points, their_points, flush=True)
        for l0 in L0S:
            add(kind, l0, at_l0(points, l0), at_l0(their_points, l0) if with_peer else ())
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=600)
    kinds = [*_SELECTED, *_PENALISED]
    options.add_argument("--kinds", nargs="*", default=kinds, choices=kinds)
    places = ["shapes", "photographs"]
    options.add_argument("--on", nargs="*", default=places, choices=places)
    arguments = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="patchsae-quality-"))
    found: Measurements = {}
    try:
        write_crops(folder / "crops", 4000, 1000)
        worlds = {
            "shapes": {
                "kind": "shapes",
                "seed": 1,
                "splits": {"train": 4000, "test": 1000},
                "label": "shape",
            },
            "photographs": {
                "kind": "image_folder",
                "root": str(folder / "crops"),
                "splits": {"train": "train", "test": "test"},
            },
        }
        for where in arguments.on:
            store = Store(folder / "store")
            backbone, inputs = inputs_of(store, worlds[where], zero_shot=False)
            two_objects = inputs_of(store, TWO_OBJECTS, zero_shot=True)[1] if where == "shapes" else None
            bench = Bench(backbone, inputs, arguments.steps, folder / "scratch", two_objects)
            found |= measure(where, bench, arguments.kinds)
    finally:
        shutil.rmtree(folder)
    report(
        f"quality after {arguments.steps} steps of {BATCH:,} tokens, {N_LATENTS:,} latents",
        found,
        arguments.json,
    )


if __name__ == "__main__":
    main()
