"""How much work a backbone is, for predictions: loading it, and its blocks on images and texts."""

from __future__ import annotations

from patchsae.pipeline.backbones.backbone import BackboneConfig, resolve_block
from patchsae.pipeline.backbones.weights import loading, n_parameters
from patchsae.pipeline.core.machine import blocks
from patchsae.pipeline.core.prediction import Probe, Upstream
from patchsae.storage.activations import ActivationTemplate

Amount = tuple[Probe, float]

_TEXT_WIDTH, _TEXT_TOKENS, _TEXT_BLOCKS = 512, 77, 12


def _shape(weights: Upstream) -> tuple[int, int, int] | None:
    """(blocks, tokens per image, width) of the image tower; None if they are not known."""
    found = [weights.fact(name) for name in ("n_blocks", "tokens_per_image", "width")]
    return None if None in found else (found[0], found[1], found[2])


def load_amounts(weights: Upstream) -> list[Amount]:
    """Loading the backbone and checking its digest."""
    if _shape(weights) is None:
        return []
    facts = {name: weights.fact(name) for name in ("n_parameters", "n_blocks", "width")}
    return [(loading(), n_parameters(facts))]


def image_amounts(
    config: BackboneConfig, weights: Upstream, n_images: float, heads: bool = False
) -> list[Amount] | None:
    """The tail of the tower on `n_images` images, or with `heads` its head; None if the tower is not known.

    The head is the blocks up to the hook, and the tail those after it.
    """
    shape = _shape(weights)
    if shape is None:
        return None
    n_blocks, tokens, width = shape
    in_head = resolve_block(config.extract.hook_block, n_blocks) + 1
    # The first layer is less than half a block. Of the last block, only the class token is computed.
    n = in_head + 0.3 if heads else max(0, n_blocks - in_head - 1) + 0.1
    batch = ActivationTemplate.plan(1, tokens, width, config.extract.dtype).chunk_images
    return [(blocks(width, tokens, min(batch, 32), config.extract.precision), n * n_images)]


def text_amounts(config: BackboneConfig, weights: Upstream, n_texts: float) -> list[Amount]:
    """The text tower on `n_texts` texts. It is taken to be as large as the image tower, and CLIP's at most."""
    shape = _shape(weights)
    if shape is None:
        return []
    n_blocks, tokens, width = shape
    size = (min(width, _TEXT_WIDTH), min(tokens, _TEXT_TOKENS))
    return [(blocks(*size, 16, config.extract.precision), min(n_blocks, _TEXT_BLOCKS) * n_texts)]
