"""Edits of latents through the tail alone are what the whole model gives when its block is changed the same way."""

from __future__ import annotations

import pytest
import torch

from patchsae.pipeline.backbones.backbone import ExtractConfig
from patchsae.pipeline.backbones.towers.vit import ClipVit
from patchsae.pipeline.results.editing import Edit, edited, switched_off
from patchsae.pipeline.saes.sae import Sae
from patchsae.storage.errors import UserError
from patchsae.storage.tokens import TokenLayout
from tests.support.clips import random_clip

S = 64
EDITS = [
    [],
    [Edit(3, 0.0)],
    [Edit(3, 2.5), Edit(7, 0.0)],
    [Edit(3, 2.5, (0, 4)), Edit(9, -1.0, (16,))],
    [Edit(3, 2.5), Edit(3, 0.5, (2,))],
]


@pytest.fixture(scope="module")
def clip() -> ClipVit:
    return random_clip(ExtractConfig(hook_block=1))


def sae(k: int | None = None) -> Sae:
    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec = (torch.randn(*shape, generator=generator) for shape in ((32, S), (S, 32)))
    return Sae(W_enc, torch.zeros(S), W_dec / 10, torch.randn(32, generator=generator), k=k)


@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("edits", EDITS, ids=str)
@pytest.mark.parametrize("error", ["kept", "dropped"])
def test_the_tail_gives_what_the_whole_forward_gives(
    clip: ClipVit, edits: list[Edit], error: str, k: int | None
) -> None:
    one, images = sae(k), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))

    def changed(module: object, inputs: object, x: torch.Tensor) -> torch.Tensor:
        # All latents, dense, with the edits written into them.
        f = one.encode(x.flatten(0, 1)).view(*x.shape[:2], S)
        x_hat = f @ one.W_dec + one.b_dec
        for edit in edits:
            f[:, list(edit.tokens) if edit.tokens else slice(None), edit.latent] = edit.value
        new = f @ one.W_dec + one.b_dec
        return new if error == "dropped" else new + (x - x_hat)

    with torch.inference_mode():
        x = clip.head(images)
        found = clip.tail(edited(one, x, clip.layout, edits, error))  # type: ignore[arg-type]
        handle = clip.blocks[1].register_forward_hook(changed)
        whole = clip.model.encode_image(images)
        handle.remove()
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)
        plain = clip.model.encode_image(images)
    is_same = torch.allclose(found, plain, rtol=1e-4, atol=1e-4)
    assert is_same == (not edits and error == "kept")


@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("error", ["kept", "dropped"])
def test_switching_off_step_by_step_is_editing(error: str, k: int | None) -> None:
    x, layout = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(3)), TokenLayout(1, (4, 4), 3)
    latents, ks = [5, 9, 40, 3, 12, 60], [1, 3, 6]
    steps = [one.clone() for one in switched_off(sae(k), x, layout, latents, ks, error)]  # type: ignore[arg-type]
    assert len(steps) == 4
    for n, found in zip([0, *ks], steps, strict=True):
        edits = [Edit(latent, 0.0) for latent in latents[:n]]
        expected = edited(sae(k), x, layout, edits, error)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_prompt_tokens_stay_as_they_are() -> None:
    x, layout = torch.randn(1, 20, 32), TokenLayout(1, (4, 4), 3)
    found = edited(sae(), x, layout, [Edit(3, 1.0)], "dropped")
    assert torch.equal(found[:, 17:], x[:, 17:]) and not torch.equal(found[:, :17], x[:, :17])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (Edit(64, 0.0), r"latent 64: this SAE has the latents 0 to 63\."),
        (Edit(-1, 0.0), r"latent -1: this SAE has the latents 0 to 63\."),
        (Edit(3, float("nan")), r"latent 3: cannot be set to nan; give a number\."),
        (Edit(3, 1.0, (17,)), r"token 17: an image has the tokens 0 to 16\."),
    ],
)
def test_bad_edits_are_a_sentence(edit: Edit, words: str) -> None:
    with pytest.raises(UserError, match=words):
        edited(sae(), torch.zeros(1, 17, 32), TokenLayout(1, (4, 4)), [edit])
