"""Pairs of scenes of the shapes world that differ in one attribute only, for metrics of single concepts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from patchsae.pipeline.shapes.world import (
    OTHER_VALUE_STREAM,
    Layout,
    description,
    generator,
    layout,
    uniforms,
    values_of,
)


def pair(seed: int, split: str, index: int, attribute: str) -> tuple[Layout, Layout]:
    """Scene `index` of `split`, and the same scene with another value of `attribute`.

    `attribute` is shape, colour, texture or background. Of several objects the first one changes, to a value that
    no object has. Everything else is equal, noise included. The other value is a pure function of the arguments.
    """
    plan = replace(layout(seed, split, index), separate_noise=True)
    others = [value for value in values_of(split)[attribute] if value not in plan.values(attribute)]
    [u] = uniforms(generator(seed, split, index, OTHER_VALUE_STREAM), 1).tolist()
    value = others[int(u * len(others))]
    first, *rest = plan.placements
    placements, background = plan.placements, plan.background
    if attribute == "background":
        background = value
    else:
        changed: dict[str, Any] = {attribute: value}
        placements = (replace(first, **changed), *rest)
    prefix = plan.caption.removesuffix(description(plan.placements, plan.background))
    caption = prefix + description(placements, background)
    return plan, replace(plan, placements=placements, background=background, caption=caption)
