"""`Contents`: what a report of an experiment holds: the paths of its resources, their values, and its pictures.

A server answers for every latent and image, and every query. A report holds the whole tables of latents, and a choice
of single latents and images, since all of them would be gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import polars as pl

from patchsae.explorer.report.one import OneExperiment
from patchsae.explorer.resources import columns, routes
from patchsae.explorer.view import View
from patchsae.pipeline.core.text import count
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import KEY_DIGITS

SMALL, LARGE = (96, 224), 640
"""Sizes in pixels of pictures in lists and beside maps, and of the picture on an image's own page."""
Values = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """What of an experiment a report holds.

    `latents`: how many of each SAE, of those that fire, the most frequent first; `all` for every latent that fires;
    ids with commas; or conditions such as `frequency>0.01;label_entropy<1.2`, which a latent meets in one view of its
    SAE at least. All views of an SAE have the same ones, so that they can be compared. `images_per_latent` bounds the
    images in each list of a latent, and those of a class. `images`: how many images of each view have a page of their
    own; they are those on which a chosen latent is strongest.

    Where `latents` or `images` is None, it is what all views together have room for; then remappings add the latents
    that changed most in each class.
    """

    latents: str | None = None
    images_per_latent: int = 12
    images: int | None = None

    def latents_with(self, n_views: int) -> str:
        return self.latents or str(_share(2500, n_views, 10, 500))

    def images_with(self, n_views: int) -> int:
        return _share(300, n_views, 3, 50) if self.images is None else self.images


def _share(total: int, n: int, least: int, most: int) -> int:
    return min(most, max(least, total // max(1, n)))


@dataclass(frozen=True)
class Picture:
    """A picture of a report: `sizes` of one image, and a view that can show it."""

    view: str
    image_set: str
    image: int
    sizes: set[int] = field(default_factory=set)


class Contents:
    """What a report of one experiment holds. `pictures` are those that the values shown so far name."""

    def __init__(self, library: OneExperiment, choice: Choice) -> None:
        self.library = library
        self.choice = choice
        self.views = library.views()
        self.latents = self._latents_of_saes()
        """View -> the latents that have a page, the most frequent first."""
        self.images = {view.key: self._strongest(view) for view in self.views}
        self.pictures: dict[tuple[str, int], Picture] = {}
        self._shown: dict[tuple[str, str], list[int]] = {}
        self.has_truth: dict[str, bool] = {}
        """Whether the ground truth of a view's images is known, for views whose value was made."""
        self._view = {view.key: view for view in self.views}

    @cached_property
    def paths(self) -> list[str]:
        """The path of every resource, in an order in which what names pictures comes first."""
        home = self._home_value
        found = ["home", "tables", *(f"training/{sae['key']}" for sae in home["saes"])]
        for view in self.views:
            key, latents, images = view.key, self.latents[view.key], self.images[view.key]
            known = routes.answer(self.library, f"view/{key}")
            found += [f"view/{key}", f"classes/{key}"]
            found += [f"latents/{key}/column/{column['name']}" for column in known["columns"]]
            found += [f"class/{key}/{label}" for label in range(view.n_classes or 0)]
            found += [f"{what}/{key}/{latent}" for latent in latents for what in _OF_LATENTS]
            found += [f"{what}/{key}/{image}" for image in images for what in _OF_IMAGES]
        for one in home["comparisons"]:
            path = f"{one['kind']}/{one['key']}"
            found.append(path)
            if one["kind"] == "matching":
                found += [f"{path}/rows/{side}" for side in _SIDES]
            else:
                classes = routes.answer(self.library, path)["classes"]
                found += [f"{path}/class/{of['class']}" for of in classes]
        return found

    def value(self, path: str) -> Values:
        """The value of a resource, as a report shows it. Raises Absent and Damaged as the server answers."""
        if path.startswith("matching/") and path.endswith(_SIDES):
            return self._matched(*path.rsplit("/", 1))
        resource, parts = routes.find(path)
        what = resource.path.partition("/")[0]
        query = {}
        if what == "maps":
            images = self._shown.get((parts["view"], parts["latent"]))
            if images is None:
                self.value(f"latent/{parts['view']}/{parts['latent']}")
                images = self._shown[parts["view"], parts["latent"]]
            query = {"images": ",".join(map(str, images))}
        value = resource.function(self.library, {**query, **parts})
        adapt = _ADAPTED.get(what)
        return value if adapt is None else adapt(self, parts, value)

    def n_pictures_at_most(self) -> int:
        """A bound on the number of images that the report shows, known before its values are made."""
        n_per_latent = max((len(images) for images in self._shown.values()), default=0)
        found = dict.fromkeys((view.images.key for view in self.views if view.images is not None), 0)
        for view in self.views:
            if view.images is not None:
                n_shown = n_per_latent * len(self.latents[view.key]) + len(self.images[view.key])
                n_shown += self.choice.images_per_latent * (view.n_classes or 0)
                n_all = int(view.images.manifest.summary["n_images"] or 0)
                found[view.images.key] = min(n_all, found[view.images.key] + n_shown)
        return sum(found.values())

    def left_out(self) -> list[str]:
        """What a server would show and the report does not: a sentence for each SAE, and one about images."""
        said = []
        for views in self._views_of_saes().values():
            n, n_all = len(self.latents[views[0].key]), views[0].n_latents
            if n < n_all:
                where = "" if len(views) == 1 else f" in each of its {len(views)} views"
                name = self.library.head(views[0])["sae"]
                said.append(
                    f"{name}: {n:,} of {count(n_all, 'latent')} have a page{where}. Tables and scatters have all."
                )
        n_images = [len(self.images[view.key]) for view in self.views]
        if any(n < view.n_images for n, view in zip(n_images, self.views, strict=True)):
            said.append(
                f"{count(sum(n_images), 'image')} have a page; those that are left out appear in lists at most."
            )
        return said

    def _views_of_saes(self) -> dict[str, list[View]]:
        found: dict[str, list[View]] = {}
        for view in self.views:
            found.setdefault(view.sae_key, []).append(view)
        return found

    def _latents_of_saes(self) -> dict[str, list[int]]:
        words = self.choice.latents_with(len(self.views))
        found: dict[str, list[int]] = {}
        for views in self._views_of_saes().values():
            latents = chosen(self.library, views, words)
            found |= {view.key: latents for view in views}
        for key, latents in ({} if self.choice.latents else self._remapped()).items():
            found[key] = list(dict.fromkeys([*found[key], *latents]))
        return found

    def _remapped(self) -> dict[str, list[int]]:
        """View -> the latents that remappings show first: those of each class that changed most."""
        found: dict[str, list[int]] = {}
        for one in self._home_value["comparisons"]:
            if one["kind"] != "remapping":
                continue
            path = f"remapping/{one['key']}"
            remapping = routes.answer(self.library, path)
            heads = [remapping[side] for side in _SIDES if remapping[side]]
            for of in remapping["classes"]:
                points = routes.answer(self.library, f"{path}/class/{of['class']}")["points"]
                points.sort(key=lambda point: -abs(point["y"] - point["x"]))
                for activity in ("kept", "added", "removed"):
                    shown = [point["latent"] for point in points if point["activity"] == activity][:_CHANGED]
                    for head in heads:
                        found.setdefault(head["key"], []).extend(shown)
        return found

    @cached_property
    def _home_value(self) -> Values:
        return routes.answer(self.library, "home")

    def _matched(self, path: str, side: str) -> Values:
        """All rows of a side of a matching, which the server gives page by page."""
        value = routes.answer(self.library, path, {"side": side, "limit": str(_PAGE)})
        while len(value["rows"]) < value["n_matched"]:
            query = {"side": side, "limit": str(_PAGE), "offset": str(len(value["rows"]))}
            value["rows"] += routes.answer(self.library, path, query)["rows"]
        return value

    def _home(self, parts: Values, value: Values) -> Values:
        made = datetime.now(UTC).isoformat(timespec="seconds")
        report = {
            "experiment": self.library.experiment,
            "made": made,
            "left_out": self.left_out(),
            "latents": self.latents,
            "images": self.images,
        }
        return {**value, "store": None, "advice": None, "report": report}

    def _tables(self, parts: Values, value: Values) -> Values:
        value["tables"] = [one for one in value["tables"] if one["n_artifacts"]]
        return value

    def _of_view(self, parts: Values, value: Values) -> Values:
        self.has_truth[parts["view"]] = value["truth"]
        if not value["pictures"]:
            value["pictures_why"] = _NOT_AT_HAND
        return value

    def _latent(self, parts: Values, value: Values) -> Values:
        n = self.choice.images_per_latent
        value["top"] = value["top"][:n]
        for part in value["examples"]:
            part["images"] = part["images"][:n]
        lists = [value["top"], *(part["images"] for part in value["examples"])]
        images = list(dict.fromkeys(one["image"] for examples in lists for one in examples))
        self._shown[parts["view"], parts["latent"]] = images
        self._show(parts["view"], images, SMALL)
        return value

    def _class(self, parts: Values, value: Values) -> Values:
        value["images"] = value["images"][: self.choice.images_per_latent]
        self._show(parts["view"], [one["image"] for one in value["images"]], SMALL)
        return value

    def _image(self, parts: Values, value: Values) -> Values:
        self._show(parts["view"], [value["image"]], (*SMALL, LARGE))
        for why in ("problem", "prediction_why"):
            if value.get(why):
                value[why] = _NOT_AT_HAND
        return value

    def _show(self, key: str, images: Sequence[int], sizes: Sequence[int]) -> None:
        found = self._view[key].images
        if found is not None:
            image_set = found.key[:KEY_DIGITS]
            for image in images:
                picture = Picture(key, image_set, image)
                self.pictures.setdefault((image_set, image), picture).sizes.update(sizes)

    def _strongest(self, view: View) -> list[int]:
        """The images on which a chosen latent is strongest, without repeats, in the order of the latents."""
        order = {latent: i for i, latent in enumerate(self.latents[view.key])}
        rows = (
            view.statistics.scan("latent_images")
            .filter(pl.col("rank") == 1)
            .select("latent", "image")
            .collect()
        )
        pairs = sorted((order[latent], image) for latent, image in rows.iter_rows() if latent in order)
        return list(dict.fromkeys(image for _, image in pairs))[: self.choice.images_with(len(self.views))]


# The server's sentence may name a folder of this machine.
_NOT_AT_HAND = (
    "What this needs was not at hand when the report was made: the images, their activations, or the weights."
)
_SIDES = ("first", "second")
_PAGE = 1000
_CHANGED = 2
_OF_LATENTS = ("latent", "neighbours", "maps")
_OF_IMAGES = ("image", "codes")
_ADAPTED: dict[str, Callable[[Contents, Values, Values], Values]] = {
    "home": Contents._home,
    "tables": Contents._tables,
    "view": Contents._of_view,
    "latent": Contents._latent,
    "class": Contents._class,
    "image": Contents._image,
}


def chosen(library: OneExperiment, views: Sequence[View], words: str) -> list[int]:
    """The latents that `Choice.latents` names, of an SAE with these views. Raises UserError for other words."""
    frames = [library.table(view.statistics, "latents") for view in views]
    frequent = pl.concat([one.select("latent", "frequency", "dead") for one in frames]).group_by("latent")
    ranked = frequent.agg(pl.col("frequency").sum(), pl.col("dead").all())
    ranked = ranked.sort("frequency", "latent", descending=[True, False])
    alive: list[int] = ranked.filter(~pl.col("dead"))["latent"].to_list()
    words = words.strip()
    if words == "all":
        return alive
    if words.isascii() and words.isdecimal():
        return alive[: int(words)]
    if set(words) <= set("0123456789, "):
        ids = {int(one) for one in words.split(",") if one.strip()}
        n = views[0].n_latents
        if (wrong := max(ids, default=0)) >= n:
            raise UserError(
                f"--latents: {wrong} is no latent of {views[0].name('sae')}, which has 0 to {n - 1:,}."
            )
    else:
        ids = {latent for one in frames for latent in one.filter(columns.where(one, words))["latent"]}
    return [latent for latent in ranked["latent"] if latent in ids]
