"""Where each latent lies in the space of the text tower: the file `embeddings.safetensors` of a gallery.

The embedding of latent s is the mean of the unit image features v_i of the images that fire it, weighted by its token
means a_is: e_s = sum_i a_is v_i / sum_i a_is. Only the first `n_embedded` images of the sample have a v_i. The vectors
are not scaled to length 1: the longer one is, the more alike are its images.

Caveats. All image features of a CLIP share a large common part, and all text features another one. `Embeddings.scores`
takes both away; without that, every word finds the same few latents. A latent that fires on few images is near those images, whatever the reason it fires; `n_images` says how
many they were. What lies beside the reason in those images is embedded too, since v_i is of whole images. The direction
of the decoder is no substitute: below the last layer its cosines with texts say little, since the rest of the tower is
not linear.

The tensors of the file: `embedding` float16 [S, E], a row of zeros for a latent that no embedded image fires;
`n_images` int32 [S], the embedded images that fire it; `mean` float32 [E], the mean of all v_i.

Shapes: S latents, E channels of the embedding, N embedded images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load, save

from patchsae.storage.artifacts import Artifact, Builder

FILE = "embeddings.safetensors"
PHRASES = ("{}", "a photo of {}")
"""What is asked for words: the mean of these texts' features."""
NEUTRAL = ("a photo", "an image", "a picture")
"""Texts that say nothing of what is seen. The mean of their features is taken from that of the words."""
_FEW_IMAGES = 10


@dataclass(frozen=True)
class Embeddings:
    """The content of the file."""

    embedding: np.ndarray  # [S, E] float16
    n_images: np.ndarray  # [S] int32
    mean: np.ndarray  # [E] float32

    @classmethod
    def read(cls, gallery: Artifact) -> Embeddings | None:
        """The embeddings of a gallery; None if it embedded no image. Raises UserError if the file is damaged."""
        if FILE not in {output.path for output in gallery.manifest.outputs}:
            return None
        return cls(**load(gallery.read(FILE)))

    def scores(self, words: np.ndarray, neutral: np.ndarray) -> np.ndarray:
        """How near each latent is to words: float32 [S], NaN for a latent that no embedded image fires.

        `words` and `neutral` [E] are means of unit text features, of `PHRASES` and of `NEUTRAL`. The score is
        cos(e_s - mean, words - neutral) n_s / (n_s + 10): a latent of few images n_s is near something by chance. Only
        the order of the scores says something, since their size depends on the model.
        """
        towards = self.embedding.astype(np.float32) - self.mean
        about = (words - neutral).astype(np.float32)
        lengths = np.linalg.norm(towards, axis=1) * np.linalg.norm(about)
        cosine = np.divide(
            towards @ about, lengths, out=np.zeros(len(towards), np.float32), where=lengths > 0
        )
        scores: np.ndarray = cosine * (self.n_images / (self.n_images + _FEW_IMAGES)).astype(np.float32)
        return np.where(self.n_images > 0, scores, np.float32(np.nan))

    def write(self, out: Builder) -> None:
        out.write(FILE, save({name: np.ascontiguousarray(array) for name, array in vars(self).items()}))


def mean_embeddings(
    ends: np.ndarray, image: np.ndarray, activation: np.ndarray, features: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings of some latents, float16 [s, E], and of how many images each is the mean, int32 [s].

    `ends` [s + 1]: latent i has the entries ends[i] to ends[i + 1] of `image` and `activation`. `features` float32 [N, E]
    are those of the images 0 to N - 1; entries of other images are left out.
    """
    from scipy.sparse import csr_array

    is_embedded = image < len(features)
    kept = np.concatenate([[0], np.cumsum(is_embedded)])[ends]
    weights = csr_array(
        (activation[is_embedded].astype(np.float32), image[is_embedded], kept),
        shape=(len(ends) - 1, len(features)),
    )
    total = np.asarray(weights.sum(axis=1), np.float32)
    sums = np.asarray(weights @ features)
    mean = np.divide(sums, total[:, None], out=np.zeros_like(sums), where=total[:, None] > 0)
    return mean.astype(np.float16), np.diff(kept).astype(np.int32)
