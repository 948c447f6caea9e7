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

from patchsae.pipeline.backbones.towers.blocks import KeysValues, is_plain, run_block, run_causal
from patchsae.pipeline.backbones.towers.clip import CutClip
from patchsae.storage.errors import UserError

_CLASSES_PER_BATCH = 128


class LearnedContext:
    """The texts of a task's classes, as far as they are not learned.

    A text is the start token, n learned tokens, the rest of the words that the learned tokens began as, if there
    is one, and the class name with a full stop. CLIP's text tower is causal: a token does not see those after it.
    So texts are cut after their ends, texts of similar length are encoded together, and the tokens that all texts
    begin with are encoded once. None of this changes the features.
    """

    def __init__(self, clip: CutClip, names: Sequence[str], n: int, words: str | None) -> None:
        """`words`: what the learned tokens begin as, of which the first n are replaced; None if they are random."""
        model = clip.model
        assert isinstance(model, CLIP), "Towers.of refuses other text towers"
        self.model: Any = model
        self.n = n
        self.dtype = clip.dtype
        self.blocks: list[Any] = list(model.transformer.resblocks)
        tokens = _tokens(clip, names, n, words).to(clip.device)
        ends = _ends(model, tokens)
        is_causal = model.attn_mask is not None and all(map(is_plain, self.blocks)) and ends is not None
        if not is_causal or ends is None:
            ends, self.n_shared = tokens.new_full((len(tokens),), tokens.shape[1] - 1), 0
        else:
            differ = (tokens != tokens[:1]).any(dim=0).int()
            n_alike = int(differ.argmax()) if bool(differ.any()) else tokens.shape[1]
            self.n_shared = min(n_alike, int(ends.min()))
        with torch.no_grad():
            embedded = (model.token_embedding(tokens) + model.positional_embedding).to(self.dtype)
        self._shared = embedded[:1, : self.n_shared]
        order = ends.argsort(stable=True)
        self._inverse = order.argsort()
        self._parts = []
        for rows in order.split(_CLASSES_PER_BATCH):
            own = slice(self.n_shared, int(ends[rows].max()) + 1)
            self._parts.append((tokens[rows, own], embedded[rows, own]))

    def encode(self, vectors: Sequence[Tensor]) -> Tensor:
        """Learned tokens of the first blocks, [n, w] each -> text features, float32 [C, E], not normalised."""
        if not self.n_shared:
            features = [self._whole(tokens, embedded, vectors) for tokens, embedded in self._parts]
        else:
            before = self._keys_and_values(vectors)
            features = [self._after(tokens, embedded, before) for tokens, embedded in self._parts]
        return torch.cat(features)[self._inverse]

    def _keys_and_values(self, vectors: Sequence[Tensor]) -> list[KeysValues]:
        """Those of the tokens that all texts begin with, by block. The learned tokens are among them."""
        x, found = self._shared, []
        for number, block in enumerate(self.blocks):
            x, one = run_causal(block, self._with_learned(x, number, vectors))
            found.append(one)
        return found

    def _after(self, tokens: Tensor, x: Tensor, before: Sequence[KeysValues]) -> Tensor:
        """The features of texts from the tokens [c, L] in which they differ, and their embeddings [c, L, w]."""
        for block, one in zip(self.blocks, before, strict=True):
            x, _ = run_causal(block, x, one)
        return self._pooled(tokens, x)

    def _whole(self, tokens: Tensor, x: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """The features of whole texts: [c, L] and [c, L, w] -> [c, E]."""
        for number, block in enumerate(self.blocks):
            x = run_block(block, self._with_learned(x, number, vectors), self.model.attn_mask)
        return self._pooled(tokens, x)

    def _with_learned(self, x: Tensor, number: int, vectors: Sequence[Tensor]) -> Tensor:
        """The input [c, L, w] of a block, with its learned tokens in their places, if it has some."""
        if number >= len(vectors):
            return x
        vector = vectors[number]
        if number == 0:
            vector = vector + self.model.positional_embedding[1 : 1 + self.n]
        # Cast after expanding: its gradient is then summed over the classes in float32.
        learned = vector.expand(len(x), -1, -1).to(self.dtype)
        return torch.cat([x[:, :1], learned, x[:, 1 + self.n :]], dim=1)

    def _pooled(self, tokens: Tensor, x: Tensor) -> Tensor:
        model = self.model
        pooled = text_global_pool(x, tokens, model.text_pool_type, eos_token_id=model.text_eos_id)
        # Each token has a norm of its own, so that of the pooled one is enough.
        pooled = model.ln_final(pooled)
        if isinstance(model.text_projection, nn.Linear):
            pooled = model.text_projection(pooled)
        elif model.text_projection is not None:
            pooled = pooled @ model.text_projection
        features: Tensor = pooled.float()
        return features


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


def _ends(model: Any, tokens: Tensor) -> Tensor | None:
    """The position of the token that the feature of each text is taken at, int64 [C]; None if it is the last one."""
    if model.text_pool_type == "argmax":
        return tokens.argmax(dim=1)
    if model.text_pool_type == "eos":
        return (tokens == model.text_eos_id).int().argmax(dim=1)
    return None
