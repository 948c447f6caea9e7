"""What both backbones predict of held-out images: as they are, and with the top k latents of a class alone.

Shapes: B images of T tokens, of which R are replaced; d channels, C classes, k the number of masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.classification.zero_shot import ZeroShot
from patchsae.pipeline.evaluations.masking.sweep import sweep
from patchsae.pipeline.evaluations.remapping.settings import Task
from patchsae.pipeline.saes.encode import LatentEncoder


class Predictions:
    """Predicts the images of a part with one backbone.

    `into` [tasks, 1 + k, n] gets the predicted class ids: of the original activations, of the `ks`, and with
    `includes_all` of the reconstruction; -1 where an image is of no class of a task.
    """

    def __init__(
        self,
        encoder: LatentEncoder,
        zero_shot: ZeroShot,
        ranking: Tensor,
        ks: np.ndarray,
        includes_all: bool,
        tasks: Sequence[Task],
        tokens: range,
    ) -> None:
        self.encoder, self.zero_shot, self.ranking = encoder, zero_shot, ranking
        self.ks, self.includes_all, self.tasks, self.tokens = ks, includes_all, tasks, tokens

    @property
    def n_masks(self) -> int:
        return len(self.ks) + self.includes_all

    @torch.inference_mode()
    def of(self, x: Tensor, labels: np.ndarray) -> np.ndarray:
        """x [B, T, d], labels [B] -> int32 [tasks, 1 + k, B]."""
        sae, first, last = self.encoder.sae, self.tokens.start, self.tokens.stop
        found = [self._predicted(x)]
        if self.n_masks:
            replaced = x[:, first:last]
            latents = self.encoder.block(replaced.flatten(0, 1))
            of_labels = self.ranking[torch.from_numpy(labels).to(x.device).long()]

            def in_place(values: Tensor) -> Tensor:
                return torch.cat([x[:, :first], values.view_as(replaced), x[:, last:]], dim=1)

            if len(self.ks):
                for R_k in sweep(latents, len(x), of_labels, self.ks, sae.W_dec):
                    found.append(self._predicted(in_place(R_k + sae.b_dec)))
            if self.includes_all:
                x_hat = latents.decode(latents.value, sae.W_dec) + sae.b_dec
                found.append(self._predicted(in_place(x_hat)))
        predicted = np.stack(found, axis=1)
        for task, of_task in zip(self.tasks, predicted, strict=True):
            of_task[:, ~np.isin(labels, task.classes)] = -1
        return predicted

    def _predicted(self, activations: Tensor) -> np.ndarray:
        """The predicted class of every image in every task: int32 [tasks, B]."""
        scores = self.zero_shot.features(activations) @ self.zero_shot.embeddings.T
        found = []
        for task in self.tasks:
            among = torch.from_numpy(task.among).to(scores.device)
            found.append(task.among[scores[:, among].argmax(dim=1).cpu().numpy()])
        return np.stack(found).astype(np.int32)
