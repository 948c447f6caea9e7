"""Evaluation `adaptation`: what every adapter did to its dataset, side by side: the rows of the paper's Table 1.

Each adapter is measured by its own `remapping` node, so adding an adapter measures that one alone. Adapters that
differ in the seed alone are also summarised together.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from patchsae.pipeline.adapters.adapter import AdapterConfig
from patchsae.pipeline.classification.classifier import Prompts
from patchsae.pipeline.core.config import Config, SaeName
from patchsae.pipeline.core.graph import Names
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.stage import Inputs, Runtime, Stage
from patchsae.pipeline.core.text import nearest
from patchsae.pipeline.evaluations.adaptation.members import Member
from patchsae.pipeline.evaluations.adaptation.seeds import SUMMARISED, over_adapters
from patchsae.pipeline.evaluations.adaptation.tables import ABOUT, ADAPTATION, ADAPTATION_SEEDS, RENAMED
from patchsae.pipeline.evaluations.evaluation import EvaluationConfig, Wiring
from patchsae.pipeline.evaluations.kinds.masking import MaskingConfig
from patchsae.pipeline.evaluations.kinds.remapping import RemappingConfig
from patchsae.pipeline.evaluations.kinds.statistics import StatisticsConfig
from patchsae.pipeline.evaluations.remapping.settings import RemappingSettings
from patchsae.pipeline.evaluations.remapping.tables import REMAPPING
from patchsae.storage.artifacts import Builder
from patchsae.storage.errors import UserError
from patchsae.storage.keys import digest_json
from patchsae.storage.manifest import Summary
from patchsae.storage.tables import expected_bytes


class AdaptationConfig(EvaluationConfig, RemappingSettings):
    """Compares adapters, each with the backbone it adapts: by an evaluation of kind `remapping` on its dataset."""

    kind: Literal["adaptation"] = "adaptation"
    sae: SaeName
    """The SAE whose latents are counted. It is applied to the activations of every backbone."""
    adapters: tuple[str, ...] = ("*",)
    """Names of adapters. `*` stands for any text, so `maple-*` is a whole sweep."""
    counted: str | None = None
    """The split whose tokens are counted; if not given, the one that the adapter learned from."""
    split: str = "test"
    """The split that is classified."""
    limit: int | None = Field(None, ge=1)
    """At most so many images are counted, and classified."""
    tokens: Literal["all", "patches", "with_prompts"] = "all"
    """The tokens that are counted, as in `statistics`."""
    tau: Annotated[float, Field(ge=0)] = 0.2
    """Tokens count if the latent is above it."""
    prompts: Prompts = Prompts()
    """The prompts of the zero-shot classification; an adapter with prompts of its own has those."""
    masking_ks: tuple[Annotated[int, Field(ge=1)] | Literal["all"], ...] = ()
    """With some k, every adapter also gets an evaluation `masking` for each half of the classes: with the latents
    that its own statistics select, and those of the backbone's. The rows are in the table `masking`."""
    n_random: Annotated[int, Field(ge=1)] = 10
    """The number of random rankings of these."""

    @classmethod
    def stage(cls) -> Stage:
        return STAGE

    def chosen(self, wiring: Wiring) -> list[str]:
        """The adapters that `adapters` names, in the experiment's order. Raises UserError if a name matches none."""
        known = list(wiring.adapter_names())
        for pattern in self.adapters:
            if not fnmatch.filter(known, pattern):
                raise UserError(
                    f"adaptation: `adapters` names `{pattern}`, which is no adapter{nearest(pattern, known)}"
                )
        found = [name for name in known if any(fnmatch.fnmatch(name, one) for one in self.adapters)]
        for name in found:
            if wiring.adapter(name).dataset is None:
                raise UserError(f"adaptation: the adapter `{name}` names no `dataset`; give it one.")
        return found

    def names(self, wiring: Wiring, evaluation: str) -> Names:
        backbones = {wiring.adapter(name).backbone for name in self.chosen(wiring)}
        return Names(None, backbones.pop() if len(backbones) == 1 else None, self.sae, evaluation)

    def inputs(self, wiring: Wiring) -> dict[str, str]:
        found = {}
        for i, name in enumerate(self.chosen(wiring)):
            adapter = wiring.adapter(name)
            before = self._count(wiring, adapter, adapter.backbone)
            after = self._count(wiring, adapter, name)
            shared = {field: getattr(self, field) for field in RemappingSettings.model_fields}
            remapping = RemappingConfig(
                before=before, after=after, split=self.split, limit=self.limit, prompts=self.prompts, **shared
            )
            found[f"remapping {i}"] = wiring.add_evaluation(self._named(name), remapping)
            for half in ("base", "novel") if self.masking_ks else ():
                masking = MaskingConfig(
                    statistics=(before, after),
                    backbone=name,
                    classes=half,
                    split=self.split,
                    limit=self.limit,
                    ks=self.masking_ks,
                    n_random=self.n_random,
                    tokens=self.tokens,
                    prompts=self.prompts,
                    attributes=(),
                )
                found[f"masking {half} {i}"] = wiring.add_evaluation(self._named(f"{name}-{half}"), masking)
        return found

    def _count(self, wiring: Wiring, adapter: AdapterConfig, backbone: str) -> str:
        """The name of the statistics of a backbone on the adapter's dataset."""
        split = self.counted or adapter.split
        statistics = StatisticsConfig(
            sae=self.sae,
            dataset=adapter.dataset,
            backbone=backbone,
            split=split,
            limit=self.limit,
            tokens=self.tokens,
            tau=self.tau,
        )
        settings = [split, self.limit, self.tokens, self.tau]
        plain = settings == ["train", None, "all", 0.2]
        suffix = "" if plain else f"-{digest_json(settings)[:6]}"
        name = f"{self.sae}-{adapter.dataset}-{backbone}{suffix}"
        wiring.add_evaluation(name, statistics)
        return name

    def _named(self, adapter: str) -> str:
        """The name of a node that measures an adapter, which differs for other settings."""
        settings = {k: v for k, v in self.key_config().items() if k not in ("adapters", "kind")}
        default = type(self)(sae=self.sae).key_config()
        plain = all(value == default[name] for name, value in settings.items())
        return f"{self.sae}-{adapter}" + ("" if plain else f"-{digest_json(settings)[:6]}")

    def stage_config(self, wiring: Wiring) -> AdaptationStageConfig:
        members = [Member.of(name, wiring.adapter(name)) for name in self.chosen(wiring)]
        return AdaptationStageConfig(members=tuple(members))


class AdaptationStageConfig(Config):
    """The config of the stage. The inputs say how each adapter was measured."""

    members: tuple[Member, ...]


def _run(config: AdaptationStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    rows: list[dict[str, Any]] = []
    for i, member in enumerate(config.members):
        table = inputs[f"remapping {i}"].scan(REMAPPING.name).drop("artifact").collect()
        about = {column.name: getattr(member, column.name) for column in ABOUT}
        rows += [
            {**about, "settings": member.settings, **row}
            for row in table.rename(RENAMED).iter_rows(named=True)
        ]
    out.write_table(ADAPTATION, {c.name: [row[c.name] for row in rows] for c in ADAPTATION.columns})
    seeds = over_adapters(rows)
    out.write_table(
        ADAPTATION_SEEDS, {c.name: [row[c.name] for row in seeds] for c in ADAPTATION_SEEDS.columns}
    )
    return {"n_adapters": len(config.members), **_means(seeds)}


def _means(seeds: Sequence[dict[str, Any]]) -> Summary:
    """The mean over methods and datasets of the quantities that people look at first, for each half."""
    found: Summary = {}
    for classes in ("base", "novel"):
        for quantity in ("accuracy_before", "accuracy_after"):
            values = [
                row["mean"] for row in seeds if (row["classes"], row["quantity"]) == (classes, quantity)
            ]
            if values:
                found[f"{classes}_{quantity}"] = sum(values) / len(values)
    return found


def _predict(config: AdaptationStageConfig, inputs: Upstreams) -> Prediction:
    n = 3 * len(config.members)
    n_bytes = (
        MANIFEST_BYTES
        + 500 * len(config.members)
        + expected_bytes(ADAPTATION, n, 250)
        + expected_bytes(ADAPTATION_SEEDS, n * len(SUMMARISED), 20)
    )
    return Prediction({"n_adapters": len(config.members)}, n_bytes, 0, [])


STAGE = Stage(
    name="adaptation",
    version=1,
    section="evaluations",
    uses_gpu=False,
    description="Adapters side by side.",
    run=_run,
    predict=_predict,
)
