"""Training steps of MaPLe: ours, against a plain implementation of the same arithmetic.

The plain one is what the papers' code does: in every step it encodes the prompts of all classes at the text tower's
full length, in float32, computes every token of every block, and has tokens before sequences ([T, B, d]), for which
torch's MultiheadAttention is fast. Frozen weights get no gradient in either. Both begin with the same prompts and see
the same images.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize

from benchmarks.report import Measurement, parser, report
from patchsae.pipeline.adapters.adapter import Adapter, Batch, Task
from patchsae.pipeline.adapters.methods.maple import MapleConfig
from patchsae.pipeline.backbones.backbone import ExtractConfig
from patchsae.pipeline.backbones.models.shapes_clip import ShapesClipConfig
from patchsae.pipeline.backbones.towers.make import make_model
from patchsae.pipeline.backbones.towers.vit import ClipVit
from patchsae.pipeline.core.open_clip_data import model_config
from patchsae.pipeline.shapes.world import COLOURS, SHAPES

Step = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--model", default="ViT-B-16-quickgelu", help="open_clip architecture, or shapes_clip"
    )
    options.add_argument("--depth", type=int, default=9)
    options.add_argument("--classes", type=int, default=19, help="at most 60; the pets have 19 base classes")
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--lr", type=float, default=0.0035)
    arguments = options.parse_args()
    names = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS][: arguments.classes]

    def begin(precision: Literal["float32", "bfloat16"]) -> Adapter:
        config = MapleConfig(backbone="clip", dataset="images", depth=arguments.depth, precision=precision)
        task = Task(names, [], torch.empty(0))
        return config.begin(backbone_of(arguments.model), task, torch.Generator().manual_seed(0))

    full, half = begin("float32"), begin("bfloat16")
    clip = backbone_of(arguments.model)
    plain = PlainMaple(clip, names, full.parameters)
    trained: list[tuple[Step, Sequence[Tensor]]] = [
        (plain.loss, list(plain.parameters.values())),
        *((_step_of(one), list(one.parameters.values())) for one in (full, half)),
    ]
    seconds, losses = run(trained, clip.image_size, arguments)
    rates = [arguments.batch / one for one in seconds]
    report(
        f"MaPLe training, {arguments.model}, depth {arguments.depth}, {arguments.classes} classes, "
        f"batch {arguments.batch}",
        {
            "bfloat16 / plain float32": _measured(rates[2] / rates[0], 1.5),
            "float32 / plain float32": _measured(rates[1] / rates[0], None),
            "plain float32": _measured(rates[0], None, "images/s"),
            "bfloat16": _measured(rates[2], None, "images/s"),
            "largest distance of the loss, float32": _measured(_distance(losses, 1), None, "of the loss"),
            "largest distance of the loss, bfloat16": _measured(_distance(losses, 2), None, "of the loss"),
            "last loss / first, plain": _measured(losses[-1][0] / losses[0][0], None, "ratio"),
        },
        arguments.json,
    )


def backbone_of(model: str) -> ClipVit:
    """ShapesCLIP, or a model of open_clip with random weights, which are the same at every call."""
    if model == "shapes_clip":
        found: Any = ShapesClipConfig().build({})
        return found.to("cpu")
    import open_clip

    torch.manual_seed(0)
    clip = make_model(model_config(model))
    return ClipVit(clip, torch.nn.Identity(), open_clip.get_tokenizer(model), ExtractConfig(), model, {})


def run(
    trained: Sequence[tuple[Step, Sequence[Tensor]]],
    image_size: tuple[int, int],
    arguments: argparse.Namespace,
) -> tuple[list[float], list[list[float]]]:
    """Median seconds of a step of each, and their losses by step. They take turns, so that noise hits them alike."""
    optimisers = [
        torch.optim.SGD(parameters, lr=arguments.lr, momentum=0.9, weight_decay=5e-4)
        for _, parameters in trained
    ]
    generator = torch.Generator().manual_seed(1)
    taken: list[list[float]] = [[] for _ in trained]
    losses = []
    for _ in range(arguments.steps):
        images = torch.randn((arguments.batch, 3, *image_size), generator=generator)
        labels = torch.randint(arguments.classes, (arguments.batch,), generator=generator)
        losses.append([])
        for (step, _), optimiser, seconds in zip(trained, optimisers, taken, strict=True):
            started = time.perf_counter()
            loss = step(images, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            seconds.append(time.perf_counter() - started)
            losses[-1].append(float(loss.detach()))
    # The first step warms up.
    return [sorted(times[1:])[(len(times) - 1) // 2] for times in taken], losses


class PlainMaple:
    """MaPLe without any trick: [B, 3, h, w] and labels [B] -> loss."""

    def __init__(self, clip: ClipVit, names: Sequence[str], tensors: Any) -> None:
        self.model = copy.deepcopy(clip.model)
        for tower in (self.model.transformer, self.model.visual.transformer):
            for block in tower.resblocks:
                block.attn.batch_first = False
        self.tokens = clip.tokenizer([f"a photo of a {name}." for name in names])
        self.parameters: dict[str, Tensor] = {
            name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()
        }
        self.depth = sum(name.startswith("text.") for name in tensors)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self.logits(images), labels)

    def logits(self, images: Tensor) -> Tensor:
        image, text = normalize(self.image_features(images), dim=-1), normalize(self.text_features(), dim=-1)
        return self.model.logit_scale.exp() * image @ text.T

    def text_features(self) -> Tensor:
        model = self.model
        x = model.token_embedding(self.tokens)
        x = self._replaced(x, 0) + model.positional_embedding
        x = x.transpose(0, 1).contiguous()
        for number, block in enumerate(model.transformer.resblocks):
            if 0 < number < self.depth:
                x = self._replaced(x.transpose(0, 1), number).transpose(0, 1).contiguous()
            x = block(x, attn_mask=model.attn_mask)
        x = model.ln_final(x.transpose(0, 1))
        pooled: Tensor = x[torch.arange(len(x)), self.tokens.argmax(dim=1)] @ model.text_projection
        return pooled

    def image_features(self, images: Tensor) -> Tensor:
        visual = self.model.visual
        patches = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], dim=1)
        x = torch.cat([x + visual.positional_embedding, self._image_prompt(0, images)], dim=1)
        x = visual.ln_pre(x).transpose(0, 1).contiguous()
        for number, block in enumerate(visual.transformer.resblocks):
            if 0 < number < self.depth:
                prompt = self._image_prompt(number, images).transpose(0, 1)
                x = torch.cat([x[: -len(prompt)], prompt])
            x = block(x)
        features: Tensor = visual.ln_post(x[0]) @ visual.proj
        return features

    def _replaced(self, x: Tensor, number: int) -> Tensor:
        prompt = self.parameters[f"text.{number}"]
        return torch.cat([x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1 + len(prompt) :]], dim=1)

    def _image_prompt(self, number: int, images: Tensor) -> Tensor:
        weight, bias = (self.parameters[f"projections.{number}.{part}"] for part in ("weight", "bias"))
        return linear(self.parameters[f"text.{number}"], weight, bias).expand(len(images), -1, -1)


def _step_of(adapter: Adapter) -> Step:
    return lambda images, labels: adapter.loss(Batch(labels, images))


def _distance(losses: Sequence[Sequence[float]], which: int) -> float:
    return max(abs(step[which] - step[0]) / step[0] for step in losses)


def _measured(value: float, target: float | None, unit: str = "ratio") -> Measurement:
    return Measurement(value=value, target=target, unit=unit)


if __name__ == "__main__":
    main()
