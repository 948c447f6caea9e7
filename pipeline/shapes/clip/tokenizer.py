"""ShapesCLIP's tokenizer: one id per word of a small vocabulary, with open_clip's conventions.

Padding has the id 0, the start token the highest id but one, and the end token the highest, since open_clip
takes the text feature at the `argmax` of the ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from patchsae.storage.errors import UserError

if TYPE_CHECKING:
    import torch


class WordTokenizer:
    """Maps texts to ids; called like open_clip's tokenizers. Case and punctuation are ignored."""

    def __init__(self, words: Sequence[str], context_length: int) -> None:
        self.words = list(words)
        self.context_length = context_length
        self.sot_token_id = len(self.words) + 1
        self.eot_token_id = len(self.words) + 2
        self.vocab_size = len(self.words) + 3
        self._ids = {word: i for i, word in enumerate(self.words, start=1)}

    def encode(self, text: str) -> list[int]:
        """Ids of the words alone. Raises UserError for a word outside the vocabulary."""
        ids = []
        for word in re.findall(r"[a-z0-9]+", text.lower()):
            if word not in self._ids:
                raise UserError(
                    f"ShapesCLIP does not know the word {word!r} in {text!r}; "
                    f"use only its {len(self.words)} words: {', '.join(self.words)}"
                )
            ids.append(self._ids[word])
        return ids

    def check(self, texts: Sequence[str]) -> None:
        """Raises UserError for the first text that cannot be read, as a call with these texts would."""
        for text in texts:
            self._framed(text, self.context_length)

    def _framed(self, text: str, length: int) -> list[int]:
        """Start, words, end. Raises UserError for an unknown word, or if these are more than `length`."""
        ids = [self.sot_token_id, *self.encode(text), self.eot_token_id]
        if len(ids) > length:
            raise UserError(
                f"{text!r} has {len(ids) - 2} words; ShapesCLIP reads at most {length - 2}, shorten it"
            )
        return ids

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.LongTensor:
        """int64 [n_texts, context_length]: start, words, end, padding. Raises UserError if too long."""
        import torch

        length = context_length or self.context_length
        batch = [texts] if isinstance(texts, str) else list(texts)
        result = torch.zeros((len(batch), length), dtype=torch.long)
        for row, text in enumerate(batch):
            ids = self._framed(text, length)
            result[row, : len(ids)] = torch.tensor(ids)
        return result  # type: ignore[return-value]
