"""The script that trained ShapesCLIP on the shapes world. It writes the weights and a record of the training.

    python -m patchsae.pipeline.shapes.clip.train --out pipeline/shapes/clip --checkpoints CHECKPOINTS

The loss combines three contrasts between the image tower and the text tower: images with captions
(CLIP); images with the zero-shot prompts of each attribute (as in UniCL, arXiv:2204.03610); and patches with
the same prompts (region and text, as in RegionCLIP, arXiv:2112.09106), weighted by the share of a patch that
shows the value. Without the third contrast, the accuracy on shapes stays at chance for the first 25,000
images, while colour and texture are learnt. With it and the initialisation below, the accuracy on shapes
begins to rise after 5,000 images.

The images are 0, 1, 2, ... of the split `pretrain` of the given seed; each is seen once. The learning rate is
constant until every accuracy on held-out images reaches the target. Then it falls to zero, and the run ends.
Weights and activations are bfloat16; the optimiser's copy of the weights is float32. There is one
single-threaded process per core, and the processes synchronise once per step. Threads would synchronise
hundreds of times per step, and would wait whenever the machine does other work. A checkpoint holds the whole
state, so an interrupted run can be resumed.
"""

from __future__ import annotations

import argparse
import copy
import itertools
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
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader, IterableDataset

from patchsae.pipeline.shapes import world as shapes_world
from patchsae.pipeline.shapes.clip import FOLDER, build
from patchsae.pipeline.shapes.clip.tokenizer import WordTokenizer

ATTRIBUTE_WEIGHTS = {"shape": 2.0, "colour": 0.5, "texture": 1.0, "size": 0.5, "background": 0.5}
CAPTION_WEIGHT = 0.5
PATCH_WEIGHT = 2.0  # falls with the learning rate
WARM_UP_STEPS = 100
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
    """One process's share of the steps `first_step`, `first_step + 1`, ..., without end.

    A batch: normalised images float32 [n, 3, 64, 64], captions int64 [n, context], and the share of each
    patch that shows each prompt's value, float32 [n, 64, prompts]. `part` is (rank, number of processes).
    """

    def __init__(
        self,
        seed: int,
        batch: int,
        part: tuple[int, int],
        first_step: int,
        tokenizer: WordTokenizer,
        config: dict[str, Any],
    ):
        self.seed, self.batch, self.part, self.first_step = seed, batch, part, first_step
        self.tokenizer, self.config = tokenizer, config

    def __iter__(self) -> Iterator[Batch]:
        rank, n_processes = self.part
        for step in itertools.count(self.first_step):
            indices = range(step * self.batch + rank, (step + 1) * self.batch, n_processes)
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
        shapes_world.TEMPLATES[attribute][template].format(value)
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


def encode_text(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """open_clip's encode_text, normalised, float32 [n, embed_dim]; spares the padding that all texts have."""
    ends = ids.argmax(dim=-1)
    length = int(ends.max()) + 1
    x = model.token_embedding(ids[:, :length]) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(ids)), ends] @ model.text_projection
    return F.normalize(pooled.float(), dim=-1)


def loss_of(
    model: Any, scale: torch.Tensor, batch: Batch, prompt_ids: torch.Tensor, patch_weight: float
) -> torch.Tensor:
    """The training loss; `scale` is the logarithm of the logit scale."""
    images, captions, shares = batch
    visual = model.visual
    visual.output_tokens = True
    pooled, tokens = visual(images.to(torch.bfloat16))
    visual.output_tokens = False
    image_features = F.normalize(pooled.float(), dim=-1) * scale.exp()
    patch_features = F.normalize((tokens @ visual.proj).float(), dim=-1) * scale.exp()
    caption_features, prompt_features = encode_text(model, captions), encode_text(model, prompt_ids)
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
        texts = [t.format(v) for v in values for t in shapes_world.TEMPLATES[attribute]]
        text_features = model.encode_text(tokenizer(texts), normalize=True).float()
        text_features = F.normalize(text_features.unflatten(0, (len(values), -1)).mean(1), dim=-1)
        truth = torch.tensor([values.index(scene_value(s, attribute)) for s in scenes])
        predicted = (features @ text_features.T).argmax(1)
        accuracies[attribute] = round(float((predicted == truth).float().mean()), 4)
    return accuracies


def learning_rate(step: int, decay_from: int, decay_steps: int) -> float:
    """As a share of the peak: linear warm-up, constant, then half a cosine to zero."""
    if step < decay_from:
        return min(1.0, (step + 1) / WARM_UP_STEPS)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - decay_from) / decay_steps)))


def decay_start(history: list[dict[str, float]], options: argparse.Namespace) -> int:
    """The step at which the learning rate starts to fall: at the first evaluation where every accuracy
    (but that of size, which is no label) reaches the target, or so that `--images` are not exceeded."""
    for entry in history:
        if min(entry[a] for a in ("shape", "colour", "texture", "background")) >= options.target:
            return int(entry["images"]) // options.batch
    return (options.images - options.decay_images) // options.batch


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
    parser.add_argument("--images", type=int, default=400_000, help="at most so many")
    parser.add_argument("--target", type=float, default=0.93, help="accuracy at which the tail begins")
    parser.add_argument("--decay-images", type=int, default=80_000, help="length of the tail")
    parser.add_argument("--batch", type=int, default=64, help="images per step, over all processes")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--evaluate-every", type=int, default=150, help="steps; also the checkpoint interval")
    options = parser.parse_args(arguments)
    # The folder of the checkpoints is a place on one machine and changes nothing: it is not recorded.
    given = arguments if arguments is not None else sys.argv[1:]
    shown = ["CHECKPOINTS" if a == str(options.checkpoints) else a for a in given]
    options.command = shlex.join(["python", "-m", "patchsae.pipeline.shapes.clip.train", *shown])
    return options


def average_gradients(pairs: list[tuple[torch.nn.Parameter, torch.nn.Parameter]]) -> None:
    """Moves the gradients of the bfloat16 weights, averaged over the processes, to the float32 copy."""
    used = [(full, half.grad) for full, half in pairs if half.grad is not None]
    flat = torch.cat([grad.flatten().float() for _, grad in used])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([grad.numel() for _, grad in used])
    for (full, grad), part in zip(used, parts, strict=True):
        full.grad = part.view_as(grad)
    for _, half in pairs:
        half.grad = None


def train(rank: int, options: argparse.Namespace) -> None:
    """One of the training processes; the first one also evaluates and writes."""
    torch.set_num_threads(1)
    rendezvous = f"file://{(options.checkpoints / 'rendezvous').resolve()}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=options.processes)
    config = json.loads((FOLDER / "model.json").read_text())
    text_cfg, vision_cfg = config["model_cfg"]["text_cfg"], config["model_cfg"]["vision_cfg"]
    words = (FOLDER / config["vocabulary"]).read_text().split()
    tokenizer = WordTokenizer(words, text_cfg["context_length"])
    if tokenizer.vocab_size != text_cfg["vocab_size"]:
        raise ValueError(f"model.json: set text_cfg.vocab_size to {tokenizer.vocab_size}")
    F.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
    torch.manual_seed(options.seed)
    master: Any = build(config)
    initialise(master, vision_cfg["width"], vision_cfg["head_width"])
    optimiser = optimiser_of(master)
    step, seconds = 0, 0.0
    history: list[dict[str, float]] = []
    checkpoint = options.checkpoints / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        master.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        step, seconds, history = saved["step"], saved["seconds"], saved["history"]
    dist.barrier()
    model = copy.deepcopy(master).to(torch.bfloat16)
    pairs = list(zip(master.parameters(), model.parameters(), strict=True))
    prompt_ids = [tokenizer(prompts(template)) for template in range(len(shapes_world.TEMPLATES["shape"]))]
    decay_steps = options.decay_images // options.batch
    decay_from = decay_start(history, options)
    stream = Stream(options.seed, options.batch, (rank, options.processes), step, tokenizer, config)
    losses: list[float] = []
    start = time.monotonic()
    for batch in DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4):
        share = learning_rate(step, decay_from, decay_steps)
        loss = loss_of(
            model, model.logit_scale.float(), batch, prompt_ids[step % len(prompt_ids)], PATCH_WEIGHT * share
        )
        loss.backward()
        average_gradients(pairs)
        torch.nn.utils.clip_grad_norm_(master.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * share
        optimiser.step()
        with torch.no_grad():
            master.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
            for full, half in pairs:
                half.copy_(full)
        step += 1
        losses.append(loss.item())
        done = step >= decay_from + decay_steps
        if step % options.evaluate_every == 0 or done:
            # Every process evaluates: all of them must see the same start of the tail.
            accuracy = zero_shot_accuracy(model, tokenizer, config, options.seed, 500)
            mean_loss = round(sum(losses) / len(losses), 4)
            history.append({"images": step * options.batch, "loss": mean_loss, **accuracy})
            decay_from = decay_start(history, options)
            losses = []
            if rank == 0:
                elapsed = seconds + time.monotonic() - start
                print(f"{elapsed:.0f} s", json.dumps(history[-1]), flush=True)
                state = {"model": master.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
                part = checkpoint.with_suffix(".part")
                torch.save({**state, "seconds": elapsed, "history": history}, part)
                part.replace(checkpoint)
        if done:
            break
    dist.destroy_process_group()
    if rank == 0:
        write(master.eval(), tokenizer, config, options, history, seconds + time.monotonic() - start)


def write(
    model: Any,
    tokenizer: WordTokenizer,
    config: dict[str, Any],
    options: argparse.Namespace,
    history: list[dict[str, float]],
    seconds: float,
) -> None:
    """The weights (float32) and the record of the run."""
    options.out.mkdir(parents=True, exist_ok=True)
    weights = options.out / "model.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
    weights.chmod(0o644)  # safetensors leaves it readable by its owner alone
    record = {
        "command": options.command,
        "git_revision": options.revision,
        "seed": options.seed,
        "images_seen": history[-1]["images"],
        "seconds": round(seconds),
        "torch": torch.__version__,
        "heldout_accuracy": zero_shot_accuracy(model, tokenizer, config, options.seed, 2000),
        "heldout_images": 2000,
        "history": history,
    }
    (options.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["heldout_accuracy"]))


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    (options.checkpoints / "rendezvous").unlink(missing_ok=True)
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    options.revision = git.stdout.strip()
    spawn(train, args=(options,), nprocs=options.processes)


if __name__ == "__main__":
    main()
