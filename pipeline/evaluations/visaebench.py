"""Scores an SAE with ViSAEBench (`visaebench` 0.1 on PyPI) on cached activations, for `patchsae visaebench`.

ViSAEBench calls `encode` and `decode` on normalised patches: it subtracts their mean and divides them by one
number, the root mean square of what is left. Our SAEs take activations as they are. So the adapter undoes the
normalisation before encoding and normalises the reconstruction again.

Shapes: P patches per image, d channels, S latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.saes.sae import Sae
from patchsae.storage.activations import Activations
from patchsae.storage.errors import UserError

METRICS = ("localization", "fvu", "downstream_preservation", "sparse_probing", "absorption")
"""The metrics that need only activations and labels. `absorption` is defined on ImageNet's classes only."""
DEFAULT_METRICS = METRICS[:4]
FVU_NOTE = (
    "fvu is ViSAEBench's: from the mean squared error it takes off the square of the mean error summed over "
    "channels, so it can be lower than the FVU of `reconstruction`, even below 0, where reconstructions are "
    "shifted."
)
"""To be shown wherever its `fvu` is. Ours takes nothing off (`pipeline.saes.quality`)."""
_IMAGES_PER_FILE = 5000
_IMAGENET_CLASSES = 1000


class VisaeBenchSae:
    """The interface of an SAE that ViSAEBench expects, for inputs `(x - mean) / std`."""

    def __init__(self, sae: Sae, mean: Tensor, std: float) -> None:
        self.sae = sae
        self.mean = mean.to(sae.b_dec)
        self.std = std

    @torch.inference_mode()
    def encode(self, x: Tensor) -> Tensor:
        """Normalised inputs [..., d] -> dense latents [..., S]."""
        f = self.sae.encode(x.flatten(0, -2) * self.std + self.mean)
        return f.unflatten(0, x.shape[:-1])

    @torch.inference_mode()
    def decode(self, z: Tensor) -> Tensor:
        """Latents [..., S] -> normalised reconstruction [..., d]."""
        return (z @ self.sae.W_dec + self.sae.b_dec - self.mean) / self.std


def check_metrics(metrics: Sequence[str]) -> None:
    """Raises UserError if a metric is not in `METRICS`."""
    for name in metrics:
        if name not in METRICS:
            raise UserError(
                f"--metric {name}: not among those that activations and labels suffice for ({', '.join(METRICS)}); for "
                "others call ViSAEBench with its own backbones and data."
            )


def write_patches(activations: Activations, rows: range, folder: Path) -> list[Path]:
    """Writes the patches of images `rows`, [images, P, d] without other tokens, as files ViSAEBench reads."""
    folder.mkdir(parents=True, exist_ok=True)
    selected = activations.layout.select("patches")
    paths = []
    for number, start in enumerate(range(rows.start, rows.stop, _IMAGES_PER_FILE)):
        stop = min(start + _IMAGES_PER_FILE, rows.stop)
        values = activations.read(start, stop)
        activations.check_finite(np.arange(start, stop), values)
        patches = torch.from_numpy(np.ascontiguousarray(values[:, selected.start : selected.stop]))
        paths.append(folder / f"shard_{number:03d}.pt")
        torch.save(patches.view(getattr(torch, activations.dtype)), paths[-1])
    return paths


def score(
    sae: Sae,
    activations: Activations,
    rows: range,
    labels: np.ndarray,
    metrics: Sequence[str],
    scratch: Path,
    device: str = "cpu",
) -> list[dict[str, float | str]]:
    """One mapping per metric with the keys `metric`, `dimension`, `value` and `better` (higher or lower).

    `sae` must be on `device`. `labels` are those of the images `rows`. Patches are written to `scratch`,
    which the caller deletes. Raises UserError if ViSAEBench is not installed or cannot compute a metric.
    """
    check_metrics(metrics)
    if "absorption" in metrics and labels.max() + 1 != _IMAGENET_CLASSES:
        # The metric would find none of its classes here and report 0, which is the best score.
        raise UserError(
            f"--metric absorption: knows ImageNet's {_IMAGENET_CLASSES:,} classes and these images have "
            f"{labels.max() + 1}; leave it out."
        )
    bench, runners = _package()
    paths = write_patches(activations, rows, scratch)
    mean, std = bench.compute_or_load_norm_stats(paths)
    results = runners.MetricRunner(metrics=metrics, device=device).run(
        VisaeBenchSae(sae, mean, std),
        activations=paths,
        labels=labels,
        mean=mean,
        std=std,
        grid_size=activations.layout.grid,
        dict_size=sae.n_latents,
    )
    found = {result.name: result for result in results}
    rows_of_table: list[dict[str, float | str]] = []
    for name in metrics:
        result = found.get(bench.METRIC_REGISTRY[name].name)
        if result is None:
            raise UserError(
                f"--metric {name}: ViSAEBench could not compute it, for the reason it gave above."
            )
        rows_of_table.append(
            {
                "metric": name,
                "dimension": result.dimension,
                "value": float(result.value),
                "better": "higher" if result.higher_is_better else "lower",
            }
        )
    return rows_of_table


def _package() -> tuple[Any, Any]:
    try:
        import visaebench
        from visaebench.metrics import runner
    except ModuleNotFoundError as error:
        raise UserError(
            f"ViSAEBench is not installed (no module `{error.name}`); `uv sync --group interchange` installs it."
        ) from None
    return visaebench, runner
