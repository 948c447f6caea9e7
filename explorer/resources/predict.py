"""`predict`: what the backbone makes of an image when latents are switched off or set to other values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from patchsae.explorer.library import Library
from patchsae.explorer.pictures import row_of
from patchsae.explorer.resources.images import row_activations, upload_activations
from patchsae.explorer.view import View
from patchsae.storage.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_SHOWN = 10
_MOST_EDITS = 500


class EditAsked(BaseModel):
    """An edit, as a page asks for it; without `tokens` it is one of all tokens."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    latent: int
    value: float
    tokens: list[int] | None = None


class Asked(BaseModel):
    """The body of `predict`: a row of the dataset, or an upload, and the edits."""

    model_config = ConfigDict(extra="forbid")

    image: int | None = None
    upload: str | None = None
    edits: list[EditAsked] = Field([], max_length=_MOST_EDITS)
    error: Literal["kept", "dropped"] = "kept"


def predict(library: Library, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The prediction before and after the edits."""
    from patchsae.explorer import models
    from patchsae.pipeline.results.editing import Edit, edited

    view, asked = library.view(arguments["view"]), _asked(arguments["body"])
    if asked.upload is not None:
        x = upload_activations(library, view, asked.upload)
    else:
        x = row_activations(library, view, row_of(library, view, str(asked.image)))
    sae, layout = models.sae(library, view), models.activations(view).layout
    edits = [
        Edit(one.latent, one.value, None if one.tokens is None else tuple(one.tokens)) for one in asked.edits
    ]
    x_new = models.computed(lambda: edited(sae, x, layout, edits, asked.error))
    before, after = predicted(library, view, x), predicted(library, view, x_new)
    return {"before": before, "after": after, "flipped": before[0]["class"] != after[0]["class"]}


def _asked(body: bytes) -> Asked:
    """The body of a request. Raises UserError, naming the field, if it is something else."""
    try:
        asked = Asked.model_validate(json.loads(body))
    except (ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise UserError("predict: its body is no JSON; send {image, edits, error}.") from None
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"])) or "body"
        raise UserError(f"predict: `{field}`: {fault['msg'][:200]}.") from None
    if (asked.image is None) == (asked.upload is None):
        raise UserError("predict: give either `image` (a row) or `upload` (an id).")
    return asked


def predicted(library: Library, view: View, x: Tensor) -> list[dict[str, Any]]:
    """The ten classes with the largest logits for activations [1, T, d]: class, name, p and logit.

    Raises UserError if the backbone or its classifier cannot be loaded.
    """
    import torch

    from patchsae.explorer import models

    zero_shot = models.zero_shot(library, view)
    names = library.class_names(view)

    @torch.inference_mode()
    def classify() -> tuple[Tensor, Tensor]:
        logits = zero_shot.logits(x)[0]
        return logits, logits.softmax(dim=0)

    logits, p = models.computed(classify)
    order = logits.argsort(descending=True, stable=True)[:_SHOWN].tolist()
    return [
        {
            "class": i,
            "name": names[i] if i < len(names) else None,
            "p": float(p[i]),
            "logit": float(logits[i]),
        }
        for i in order
    ]
