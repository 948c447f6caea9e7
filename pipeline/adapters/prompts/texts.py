"""`LearnedContext`: the text features of classes whose prompts begin with learned tokens.

Shapes: C classes, L tokens of the longest text, w width of the text tower, E embedding, n learned tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from patchsae.pipeline.backbones.towers.clip import CutClip
from patchsae.storage.errors import UserError

_CLASSES_PER_BATCH = 128


class LearnedContext:
    """The texts of a task's classes, as far as they are not learned.

    A text is the start token, n learned tokens, the rest of the words that the learned tokens began as, if there
    is one, and the class name with a full stop. The text tower is causal: a token does not see those after it. So
    texts are cut after the longest one's end, which changes nothing, and texts of similar length are encoded
    together.
    """

    def __init__(self, clip: CutClip, names: Sequence[str], n: int, words: str | None) -> None:
        """`words`: what the learned tokens begin as, of which the first n are replaced; None if they are random."""
        model = clip.model
        assert isinstance(model, CLIP), "Towers.of refuses other text towers"
        self.model: Any = model
        self.n = n
        self.dtype = clip.dtype
        tokens = _tokens(clip, names, n, words).to(clip.device)
        ends = _last_needed(model, tokens)
        order = ends.argsort(stable=True)
        self._inverse = order.argsort()
        self._parts = []
        for rows in order.split(_CLASSES_PER_BATCH):
            cut = tokens[rows, : int(ends[rows].max()) + 1]
            with torch.no_grad():
                embedded = model.token_embedding(cut) + model.positional_embedding[: cut.shape[1]]
            self._parts.append((cut, embedded.to(self.dtype)))

    def encode(self, vectors: Sequence[Tensor]) -> Tensor:
        """Learned tokens of the first blocks, [n, w] each -> text features, float32 [C, E], not normalised."""
        features = [self._encode(tokens, embedded, vectors) for tokens, embedded in self._parts]
        return torch.cat(features)[self._inverse]

    def _encode(self, tokens: Tensor, embedded: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        model, length = self.model, tokens.shape[1]
        mask = None if model.attn_mask is None else model.attn_mask[:length, :length]
        x = embedded
        for number, block in enumerate(model.transformer.resblocks):
            if number < len(vectors):
                vector = vectors[number]
                if number == 0:
                    vector = vector + model.positional_embedding[1 : 1 + self.n]
                x = self._replaced(x, vector)
            x = block(x, attn_mask=mask)
        # Each token has a norm of its own, so that of the pooled one is enough.
        pooled = model.ln_final(
            text_global_pool(x, tokens, model.text_pool_type, eos_token_id=model.text_eos_id)
        )
        if isinstance(model.text_projection, nn.Linear):
            pooled = model.text_projection(pooled)
        elif model.text_projection is not None:
            pooled = pooled @ model.text_projection
        return pooled.float()

    def _replaced(self, x: Tensor, vector: Tensor) -> Tensor:
        """The texts [c, L, w] with the learned tokens [n, w] in their places."""
        # Cast after expanding: its gradient is then summed over the classes in float32.
        learned = vector.expand(x.shape[0], -1, -1).to(self.dtype)
        return torch.cat([x[:, :1], learned, x[:, 1 + self.n :]], dim=1)


def words_embedded(clip: CutClip, words: str, n: int) -> Tensor:
    """The embeddings of the first n words, with which a learned context begins: float32 [n, w]."""
    tokens = clip.tokenizer([words]).to(clip.device)
    embedded: Tensor = clip.model.token_embedding(tokens)[0, 1 : 1 + n]
    return embedded.detach().float().clone()


def texts_of(names: Sequence[str], words: str | None) -> list[str]:
    """The texts whose tokens the classes get: `a photo of a cat.`, or `cat.` without words."""
    before = "" if words is None else f"{words} "
    return [f"{before}{name.replace('_', ' ')}." for name in names]


def _tokens(clip: CutClip, names: Sequence[str], n: int, words: str | None) -> Tensor:
    """Token ids, int64 [C, context length]; those of learned tokens without words are 0."""
    tokens = clip.tokenizer(texts_of(names, words))
    if words is not None:
        return tokens
    padding = clip.tokenizer([""])[0, -1]
    for name, rest in zip(names, tokens[:, -n:], strict=True):
        if not bool((rest == padding).all()):
            raise UserError(
                f"the class name {name!r} and {n} learned tokens are longer than the {tokens.shape[1]} tokens that "
                "the text tower reads; lower `n_ctx`."
            )
    return torch.cat([tokens[:, :1], tokens.new_zeros(len(names), n), tokens[:, 1:-n]], dim=1)


def _last_needed(model: Any, tokens: Tensor) -> Tensor:
    """The position of the last token that the feature of each text depends on: int64 [C]."""
    if model.attn_mask is not None and model.text_pool_type == "argmax":
        return tokens.argmax(dim=1)
    if model.attn_mask is not None and model.text_pool_type == "eos":
        return (tokens == model.text_eos_id).int().argmax(dim=1)
    return tokens.new_full((len(tokens),), tokens.shape[1] - 1)
