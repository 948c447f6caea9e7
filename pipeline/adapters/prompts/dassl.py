"""Checkpoints that the code of CoOp, MaPLe and PromptSRC writes: the files `model.pth.tar-N` of Dassl.

Such a file is a dictionary with a state dict, an epoch, and the states of the optimiser and of the schedule. The
last holds objects of classes, which torch refuses to read safely; here they are skipped and never made. A state
dict has what was trained, the frozen towers (not CoOp's), and the embeddings of the class names it was trained
with (`token_prefix`, `token_suffix`), which are dropped: those of the class names at hand take their place.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from patchsae.pipeline.adapters.prompts.vectors import Size, sequence
from patchsae.pipeline.backbones.checkpoints.archive import load_archive
from patchsae.pipeline.backbones.checkpoints.read import State, file_fingerprint, read_state
from patchsae.pipeline.core.tensors import BROKEN, check_archive, check_dense, why_unreadable
from patchsae.pipeline.core.text import count
from patchsae.storage.errors import UserError

_DROPPED = re.compile(r"(prompt_learner\.)?token_(prefix|suffix)")
_FROZEN = (
    (re.compile(r"image_encoder\.(.+)"), "visual."),
    # PromptSRC keeps a second copy of the frozen image tower.
    (re.compile(r"prompt_learner\.ZS_image_encoder\.(.+)"), "visual."),
    (re.compile(r"text_encoder\.(.+)"), ""),
    (re.compile(r"(logit_scale)"), ""),
)
# Weights in float16 differ by 0.0005 of their size, and PromptSRC's average over epochs, in float16, by some of these.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Found:
    """What a checkpoint holds: what was trained by our names, and the frozen weights by open_clip's."""

    trained: State
    frozen: dict[str, list[tuple[str, Tensor]]]
    """Each with its name in the file."""


@dataclass(frozen=True)
class Expected:
    """What a checkpoint has to hold for an adapter to be read from it."""

    shapes: Mapping[str, tuple[int, ...]]
    """Name -> shape of what is trained."""
    sizes: Mapping[str, Size | None]
    """Tower (`image`, `text`) -> its prompts."""


@dataclass(frozen=True)
class Names:
    """How the code of a method names what it trains.

    Each pattern comes with our name of it, in which `{0}` is the number in the name plus `shift`.
    """

    method: str
    """The method's name in its own code."""
    patterns: Sequence[tuple[str, str, int]]
    """(regular expression, our name, shift)."""

    def check(
        self, path: Path, expected: Expected, shapes: Mapping[str, tuple[int, ...]], where: str
    ) -> None:
        """Raises UserError, naming `where`, if the file cannot be read, or does not fit.

        `shapes`: of the tensors of the backbone. A plan calls it.
        """
        found = self._sorted(_header(path, file_fingerprint(path)), where)
        self._check(found, expected, shapes, where)

    def read(self, path: Path, expected: Expected, state: Mapping[str, Tensor], where: str) -> State:
        """What was trained, float32. `state`: the weights of the backbone.

        Raises UserError as `check` does, and if frozen weights in the file are not those of the backbone.
        """
        found = self._sorted(_read(path), where)
        self._check(found, expected, {name: tuple(tensor.shape) for name, tensor in state.items()}, where)
        for name, copies in found.frozen.items():
            own = state[name].float().cpu()
            for theirs, tensor in copies:
                distance = (tensor.float().reshape(own.shape) - own).norm() / own.norm().clamp_min(1e-6)
                if not float(distance) < _TOLERANCE:
                    raise UserError(
                        f"{where}: was trained with another backbone, since its frozen `{theirs}` differs from "
                        f"`{name}` by {float(distance):.0%}; name the backbone whose weights it was trained with."
                    )
        for name, tensor in found.trained.items():
            if not bool(tensor.isfinite().all()):
                raise UserError(f"{where}: `{name}` is not finite; get the file again, or another epoch's.")
        return {name: tensor.float().contiguous().clone() for name, tensor in found.trained.items()}

    def _sorted(self, state: State, where: str) -> Found:
        """Raises UserError for a tensor that no checkpoint of the method has."""
        found = Found({}, {})
        for name, tensor in state.items():
            if _DROPPED.fullmatch(name):
                continue
            if (ours := self.ours(name)) is not None:
                found.trained[ours] = tensor
            elif (frozen := _frozen(name)) is not None:
                found.frozen.setdefault(frozen, []).append((name, tensor))
            else:
                raise UserError(
                    f"{where}: has a tensor `{name}`, which no checkpoint of {self.method} has; give the kind of "
                    "adapter that the file is of."
                )
        if not found.trained:
            raise UserError(
                f"{where}: has none of the prompts that a checkpoint of {self.method} has; give the file "
                "`model.pth.tar-N` that its code wrote."
            )
        return found

    def ours(self, name: str) -> str | None:
        """Our name of what the method's code calls `name`; None if it is nothing that is trained."""
        for pattern, ours, shift in self.patterns:
            if match := re.fullmatch(pattern, name):
                groups = match.groups()
                numbers = [str(int(group) + shift) if group.isdigit() else group for group in groups]
                return ours.format(*numbers)
        return None

    def _check(
        self, found: Found, expected: Expected, shapes: Mapping[str, tuple[int, ...]], where: str
    ) -> None:
        for tower, size in expected.sizes.items():
            n_blocks = len(sequence(found.trained, tower))
            own = len(sequence(expected.shapes, tower))
            if size is not None and n_blocks != own:
                raise UserError(
                    f"{where}: its prompts have depth {n_blocks} in the {tower} tower, and those of the adapter "
                    f"{own}; write `{size.depth_field}: {n_blocks}`."
                )
        for name, shape in expected.shapes.items():
            if name not in found.trained:
                raise UserError(f"{where}: lacks `{name}`; give a whole checkpoint of {self.method}.")
            size = expected.sizes.get(name.partition(".")[0])
            _check_shape(name, tuple(found.trained[name].shape), shape, size, where)
        if unknown := [name for name in found.trained if name not in expected.shapes]:
            raise UserError(
                f"{where}: has `{unknown[0]}`, which the adapter has not; give the kind of adapter that the file is of."
            )
        for name, copies in found.frozen.items():
            for theirs, tensor in copies:
                if name not in shapes:
                    raise UserError(
                        f"{where}: has frozen weights `{theirs}`, which the backbone has not; name the backbone it "
                        "was trained with."
                    )
                # A scalar may have been saved as an array of one.
                if tuple(tensor.shape) != shapes[name] and {tensor.numel(), len(shapes[name])} != {1, 0}:
                    raise UserError(
                        f"{where}: `{theirs}` is {tuple(tensor.shape)}, but {shapes[name]} in the backbone; name "
                        "the backbone it was trained with."
                    )


def _check_shape(
    name: str, found: tuple[int, ...], expected: tuple[int, ...], size: Size | None, where: str
) -> None:
    """`size`: the prompts that the tensor is one of, if it is one."""
    if found == expected:
        return
    if size is not None and len(found) == 3:
        raise UserError(
            f"{where}: has a context of its own for each of {found[0]} classes (CSC), which no other classes can "
            "have; give a checkpoint with one context for all."
        )
    if size is not None and found[1:] == expected[1:]:
        raise UserError(
            f"{where}: `{name}` has {count(found[0], 'prompt token')}, and the adapter's has {expected[0]}; write "
            f"`{size.n_field}: {found[0]}`."
        )
    raise UserError(
        f"{where}: `{name}` is {found}, but {expected} for the backbone; name the backbone it was trained with."
    )


def _frozen(name: str) -> str | None:
    """open_clip's name of a frozen tensor."""
    for pattern, prefix in _FROZEN:
        if match := pattern.fullmatch(name):
            return prefix + match[1]
    return None


@lru_cache(maxsize=32)
def _header(path: Path, fingerprint: str) -> State:
    """Names and shapes of the state dict in the file with that fingerprint."""
    return {name: tensor.to("meta") for name, tensor in _read(path).items()}


def _read(path: Path) -> State:
    """The state dict, mapped into memory. Raises UserError if the file cannot be read."""
    where = f"checkpoint {path}"
    file_fingerprint(path)
    if path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return read_state(path)
    try:
        check_archive(path, where)
        found = load_archive(path, lambda module, name: _Skipped)
        state = found.get("state_dict", found) if isinstance(found, dict) else found
    except (*BROKEN, OSError) as error:
        raise UserError(
            f"{where}: cannot be read ({why_unreadable(error)}); give the file `model.pth.tar-N` of the method's code."
        ) from error
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        raise UserError(
            f"{where}: holds no state dict; give the file `model.pth.tar-N` of the method's code."
        )
    return {
        name.removeprefix("module."): check_dense(tensor, name, where).detach()
        for name, tensor in state.items()
    }


class _Skipped:
    """Stands for any class or function of a pickle, and does nothing: neither when called nor when filled."""

    def __new__(cls, *_: Any, **__: Any) -> _Skipped:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any) -> _Skipped:
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...
