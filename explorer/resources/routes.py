"""`RESOURCES`: every resource by its path. One line here adds one, on the server and for reports."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchsae.explorer import pictures, truth
from patchsae.explorer.errors import Absent
from patchsae.explorer.library import Library
from patchsae.explorer.resources import (
    classes,
    comparisons,
    flips,
    home,
    images,
    latent,
    latents,
    maps,
    predict,
    search,
    tables,
    training,
    views,
)

Arguments = Mapping[str, str]
"""The parts of a path by name, and what follows the question mark."""


@dataclass(frozen=True)
class Resource:
    """A path with names in braces, and the function that answers it.

    `live` ones may differ though the store has the same artifacts. What `posts` takes a body, `body` among its
    arguments, and is on the server only.
    """

    path: str
    function: Callable[..., Any]
    live: bool = False
    posts: bool = False

    def match(self, path: str) -> dict[str, str] | None:
        """The parts of `path` by their names, if it is a path of this resource."""
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path)
        found = re.fullmatch(pattern, path)
        return found.groupdict() if found else None


RESOURCES: tuple[Resource, ...] = (
    Resource("home", home.home, live=True),
    Resource("view/{view}", views.view),
    Resource("classes/{view}", classes.classes),
    Resource("class/{view}/{class}", classes.one_class),
    Resource("training/{sae}", training.training, live=True),
    Resource("latents/{view}/rows", latents.rows),
    Resource("latents/{view}/column/{name}", latents.column),
    Resource("latent/{view}/{latent}", latent.latent),
    Resource("remapping/{key}", comparisons.remapping),
    Resource("remapping/{key}/class/{class}", comparisons.remapping_class),
    Resource("matching/{key}", comparisons.matching),
    Resource("matching/{key}/rows", comparisons.matching_rows),
    Resource("tables", tables.tables),
    Resource("sql", tables.sql, live=True),
    Resource("neighbours/{view}/{latent}", search.neighbours),
    Resource("maps/{view}/{latent}", maps.maps),
    Resource("image/{view}/{row}", images.image),
    Resource("codes/{view}/{row}", images.codes),
    Resource("upload/{view}", images.upload, posts=True),
    Resource("upload/{view}/{upload}", images.uploaded, live=True),
    Resource("upload-codes/{view}/{upload}", images.upload_codes, live=True),
    Resource("predict/{view}", predict.predict, posts=True),
    Resource("flips/{view}/{class}", flips.flips),
)


FILES: tuple[Resource, ...] = (
    # Their functions give `Content`, and their paths have no `/api/` in front.
    Resource("sql.csv", tables.csv, live=True),
    Resource("sql.parquet", tables.parquet, live=True),
    Resource("picture/upload/{upload}", pictures.uploaded),
    Resource("picture/{view}/{row}", pictures.picture),
    Resource("truth/{view}/{row}", truth.truth),
)


def find(
    path: str, posts: bool = False, among: Sequence[Resource] = RESOURCES
) -> tuple[Resource, dict[str, str]]:
    """The resource of a path such as `latent/KEY/12`, and the parts of the path. Raises Absent if there is none."""
    for resource in among:
        if resource.posts == posts and (parts := resource.match(path)) is not None:
            return resource, parts
    raise Absent(f"{path[:200]}: there is no such page; `#/` lists what there is.")


def answer(library: Library, path: str, query: Arguments | None = None) -> dict[str, Any]:
    """What a path gives. Raises UserError, with Absent and Damaged among them."""
    resource, parts = find(path)
    found: dict[str, Any] = resource.function(library, {**(query or {}), **parts})
    return found
