"""Trains ShapesCLIP on the shapes world and writes weights and a training record.

    python -m pipeline.shapes_clip.train --out pipeline/shapes_clip

The loss has three contrasts, all between the two towers: images with captions (CLIP); images with the
zero-shot prompts of each attribute (as in UniCL, arXiv:2204.03610); patches with the same prompts (region
and text, as in RegionCLIP, arXiv:2112.09106), weighted by how much of a patch shows the value. Without the
third, shape stays at chance for the first 25,000 images while colour and texture are learnt; with it and
the initialisation below shape starts to rise after 5,000.

The images are `pretrain` 0, 1, 2, ... of the given seed, each seen once. Weights, gradients and activations
are bfloat16, the optimiser's copy is float32. A checkpoint holds everything, so an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline import shapes_world
from pipeline.datasets.shapes import TEMPLATES
from pipeline.shapes_clip import FOLDER, build
from pipeline.shapes_clip.tokenizer import WordTokenizer

ATTRIBUTE_WEIGHTS = {"shape": 2.0, "colour": 0.5, "texture": 1.0, "size": 0.5, "background": 0.5}
CAPTION_WEIGHT = 0.5
PATCH_WEIGHTS = (2.0, 0.5)  # at the first and at the last step, linear between
MAX_LOGIT_SCALE = math.log(100)

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> torch.Tensor:
    """softmax(q k / sqrt(d)) v, [batch, heads, tokens, d]. On CPUs the fused kernel's backward pass takes
    half of the training time at 65 tokens; these three operations take a tenth."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


class Stream(IterableDataset[Batch]):
    """Batches `first_step`, `first_step + 1`, ... of `pretrain`: normalised images float32 [n, 3, 64, 64],
    captions int64 [n, context], share of each patch that shows each prompt's value [n, 64, prompts]."""

    def __init__(
        self,
        seed: int,
        batch: int,
        first_step: int,
        n_steps: int,
        tokenizer: WordTokenizer,
        config: dict[str, Any],
    ):
        self.seed, self.batch, self.first_step, self.n_steps = seed, batch, first_step, n_steps
        self.tokenizer = tokenizer
        self.config = config

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self.first_step + offset, self.n_steps, stride):
            indices = range(step * self.batch, (step + 1) * self.batch)
            scenes = [shapes_world.render(self.seed, "pretrain", i) for i in indices]
            images = normalise(np.stack([s.image for s in scenes]), self.config)
            yield images, self.tokenizer([s.caption for s in scenes]), patch_shares(scenes)


def normalise(images: np.ndarray, config: dict[str, Any]) -> torch.Tensor:
    """uint8 [n, 64, 64, 3] -> float32 [n, 3, 64, 64], as the shipped preprocessing does."""
    mean = torch.tensor(config["preprocess_cfg"]["mean"])[:, None, None]
    std = torch.tensor(config["preprocess_cfg"]["std"])[:, None, None]
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


def patch_shares(scenes: list[shapes_world.Scene]) -> torch.Tensor:
    """Share of each patch's pixels that show each pretraining value, in the order of `prompts`,
    float32 [n, 64, prompts]."""
    keys = [f"{a}={v}" for a, values in shapes_world.PRETRAINING_VALUES.items() for v in values]
    masks = [shapes_world.token_masks(scene) for scene in scenes]
    return torch.from_numpy(np.stack([[m[key].reshape(-1) for key in keys] for m in masks])).transpose(1, 2)


def prompts(template: int) -> list[str]:
    """The prompt of every pretraining value, attribute after attribute."""
    return [
        TEMPLATES[attribute][template].format(value)
        for attribute, values in shapes_world.PRETRAINING_VALUES.items()
        for value in values
    ]


def initialise(model: Any, width: int, head_width: int) -> None:
    """Starts the image tower as a soft convolution, which learns shapes in fewer images.

    The position embedding (still learned) is made of 2-D waves, so that near patches have near positions;
    the attention weights are near multiples of the identity, so that near patches attend to one another
    (mimetic initialisation, arXiv:2305.09828).
    """
    visual = model.visual
    n = shapes_world.GRID_SIZE
    y, x = torch.meshgrid(torch.arange(n).float(), torch.arange(n).float(), indexing="ij")
    frequencies = math.pi / n * torch.logspace(-1, math.log2(n) - 0.5, width // 4, base=2)
    waves = [f(c.reshape(-1, 1) * frequencies) for c in (x, y) for f in (torch.sin, torch.cos)]
    identity = torch.eye(width)

    def noise() -> torch.Tensor:
        return torch.randn(width, width) / width**0.5

    with torch.no_grad():
        visual.positional_embedding[1:] = 0.7 * torch.cat(waves, dim=1)
        for block in visual.transformer.resblocks:
            queries, keys = [], []
            for _ in range(width // head_width):
                u, s, vh = torch.linalg.svd(0.7 * noise() + 0.7 * identity)
                root = s[:head_width, None].sqrt()
                queries.append(root * u[:, :head_width].T)
                keys.append(root * vh[:head_width])
            u, s, vh = torch.linalg.svd(0.4 * noise() - 0.4 * identity)
            block.attn.in_proj_weight.copy_(torch.cat([*queries, *keys, s.sqrt()[:, None] * vh]))
            block.attn.out_proj.weight.copy_(u * s.sqrt())
            torch.nn.init.normal_(block.mlp.c_fc.weight, std=0.04)
            torch.nn.init.normal_(block.mlp.c_proj.weight, std=0.04 / math.sqrt(6))
            for layer in (block.mlp.c_fc, block.mlp.c_proj, block.attn.out_proj):
                torch.nn.init.zeros_(layer.bias)
            torch.nn.init.zeros_(block.attn.in_proj_bias)


def loss_of(
    model: Any, scale: torch.Tensor, batch: Batch, prompt_ids: torch.Tensor, patch_weight: float
) -> torch.Tensor:
    """The training loss; `scale` is the float32 logarithm of the logit scale."""
    images, captions, shares = batch
    visual = model.visual
    visual.output_tokens = True
    pooled, tokens = visual(images.to(torch.bfloat16))
    visual.output_tokens = False
    image_features = F.normalize(pooled.float(), dim=-1) * scale.exp()
    patch_features = F.normalize((tokens @ visual.proj).float(), dim=-1) * scale.exp()
    text_features = F.normalize(model.encode_text(torch.cat([captions, prompt_ids])).float(), dim=-1)
    caption_features, prompt_features = text_features.split([len(captions), len(prompt_ids)])
    logits = image_features @ caption_features.T
    same = torch.arange(len(logits))
    loss = CAPTION_WEIGHT * (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
    sizes = [len(values) for values in shapes_world.PRETRAINING_VALUES.values()]
    for attribute, image_logits, patch_logits, share in zip(
        shapes_world.PRETRAINING_VALUES,
        (image_features @ prompt_features.T).split(sizes, dim=-1),
        (patch_features @ prompt_features.T).split(sizes, dim=-1),
        shares.split(sizes, dim=-1),
        strict=True,
    ):
        # Every value that some object shows counts the same, however small the object.
        present = (share.amax(1) > 0).float()
        image_term = F.cross_entropy(image_logits, present / present.sum(1, keepdim=True))
        patch_term = -(share * patch_logits.log_softmax(-1)).sum() / share.sum()
        loss = loss + ATTRIBUTE_WEIGHTS[attribute] * (image_term + patch_weight * patch_term)
    return loss


def scene_value(scene: shapes_world.Scene, attribute: str) -> str:
    return scene.background if attribute == "background" else scene.objects[0].value(attribute)


@torch.no_grad()
def zero_shot_accuracy(
    model: Any, tokenizer: WordTokenizer, config: dict[str, Any], seed: int, n_images: int
) -> dict[str, float]:
    """Share of single-object `heldout` images whose value has the nearest prompt, per attribute.

    The candidates are the pretraining values; a value's text feature is the mean over its templates.
    """
    scenes: list[shapes_world.Scene] = []
    index = 0
    while len(scenes) < n_images:
        plan = shapes_world.layout(seed, "heldout", index)
        if len(plan.placements) == 1:
            scenes.append(shapes_world.draw(plan))
        index += 1
    dtype = next(model.parameters()).dtype
    images = normalise(np.stack([s.image for s in scenes]), config).to(dtype)
    features = torch.cat([model.encode_image(part, normalize=True) for part in images.split(256)]).float()
    accuracies = {}
    for attribute, values in shapes_world.PRETRAINING_VALUES.items():
        texts = [t.format(v) for v in values for t in TEMPLATES[attribute]]
        text_features = model.encode_text(tokenizer(texts), normalize=True).float()
        text_features = F.normalize(text_features.unflatten(0, (len(values), -1)).mean(1), dim=-1)
        truth = torch.tensor([values.index(scene_value(s, attribute)) for s in scenes])
        predicted = (features @ text_features.T).argmax(1)
        accuracies[attribute] = round(float((predicted == truth).float().mean()), 4)
    return accuracies


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    """Linear warm-up over 2 % of the run, constant to 60 %, then half a cosine to zero."""
    warm_up, decay = 0.02 * n_steps, 0.6 * n_steps
    if step < warm_up:
        return peak * (step + 1) / (warm_up + 1)
    if step < decay:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - decay) / (n_steps - decay)))


def optimiser_of(model: Any) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, fused=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train ShapesCLIP on the shapes world.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and training.json")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder to resume from")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and of the images")
    parser.add_argument("--images", type=int, default=400_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--evaluate-every", type=int, default=250, help="steps; also the checkpoint interval")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    config = json.loads((FOLDER / "model.json").read_text())
    text_cfg = config["model_cfg"]["text_cfg"]
    tokenizer = WordTokenizer((FOLDER / config["vocabulary"]).read_text().split(), text_cfg["context_length"])
    if tokenizer.vocab_size != text_cfg["vocab_size"]:
        raise ValueError(f"model.json: set text_cfg.vocab_size to {tokenizer.vocab_size}")
    F.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
    torch.manual_seed(options.seed)
    master: Any = build(config)
    vision_cfg = config["model_cfg"]["vision_cfg"]
    initialise(master, vision_cfg["width"], vision_cfg["head_width"])
    optimiser = optimiser_of(master)
    n_steps = options.images // options.batch
    step, seconds, history = 0, 0.0, []
    checkpoint = options.checkpoints / "checkpoint.pt"
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        master.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        step, seconds, history = saved["step"], saved["seconds"], saved["history"]
    model = copy.deepcopy(master).to(torch.bfloat16)
    pairs = list(zip(master.parameters(), model.parameters(), strict=True))
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    prompt_ids = [tokenizer(prompts(template)) for template in range(len(TEMPLATES["shape"]))]
    stream = Stream(options.seed, options.batch, step, n_steps, tokenizer, config)
    running, start = 0.0, time.monotonic()
    for batch in DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4):
        scale = master.logit_scale
        first, last = PATCH_WEIGHTS
        patch_weight = first + (last - first) * step / n_steps
        loss = loss_of(model, scale, batch, prompt_ids[step % len(prompt_ids)], patch_weight)
        loss.backward()
        for master_parameter, parameter in pairs:
            if parameter.grad is not None:
                master_parameter.grad = parameter.grad.float()
                parameter.grad = None
        torch.nn.utils.clip_grad_norm_(master.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, n_steps, options.learning_rate)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            master.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
            for master_parameter, parameter in pairs:
                parameter.copy_(master_parameter)
        step += 1
        running += loss.item()
        if step % options.evaluate_every == 0 or step == n_steps:
            elapsed = seconds + time.monotonic() - start
            accuracy = zero_shot_accuracy(model, tokenizer, config, options.seed, 500)
            mean_loss = running / (1 + (step - 1) % options.evaluate_every)
            history.append({"images": step * options.batch, "loss": round(mean_loss, 4), **accuracy})
            print(f"{elapsed:.0f} s", json.dumps(history[-1]), flush=True)
            running = 0.0
            state = {"model": master.state_dict(), "optimiser": optimiser.state_dict()}
            part = checkpoint.with_suffix(".part")
            torch.save({**state, "step": step, "seconds": elapsed, "history": history}, part)
            part.replace(checkpoint)
    seconds += time.monotonic() - start
    options.out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in master.state_dict().items()}, options.out / "model.safetensors")
    record = {
        "command": shlex.join(["python", "-m", "pipeline.shapes_clip.train", *(arguments or sys.argv[1:])]),
        "git_revision": revision.strip(),
        "seed": options.seed,
        "images_seen": n_steps * options.batch,
        "seconds": round(seconds),
        "torch": torch.__version__,
        "heldout_accuracy": zero_shot_accuracy(master.eval(), tokenizer, config, options.seed, 2000),
        "heldout_images": 2000,
        "history": history,
    }
    (options.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["heldout_accuracy"]))


if __name__ == "__main__":
    main()
