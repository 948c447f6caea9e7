"""An experiment: maps from names to configs that refer to each other by those names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline import backbones, datasets, evaluations, registry, saes
from pipeline.backbones.base import BackboneConfig
from pipeline.config import Config, explain, nearest
from pipeline.datasets.base import DatasetConfig
from pipeline.evaluations.base import EvaluationConfig
from pipeline.saes.base import SaeConfig
from pipeline.sweeps import check_distinct, expand
from storage.errors import UserError

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_KINDS = {
    "datasets": registry.variants(datasets, DatasetConfig),
    "backbones": registry.variants(backbones, BackboneConfig),
    "saes": registry.variants(saes, SaeConfig),
    "evaluations": registry.variants(evaluations, EvaluationConfig),
}
if TYPE_CHECKING:
    _AnyDataset = DatasetConfig
    _AnyBackbone = BackboneConfig
    _AnySae = SaeConfig
    _AnyEvaluation = EvaluationConfig
else:
    _AnyDataset, _AnyBackbone, _AnySae, _AnyEvaluation = (registry.union(kinds) for kinds in _KINDS.values())


class Experiment(Config):
    """A whole experiment, as a preset or a user's YAML file holds it."""

    name: str
    description: str = ""
    datasets: dict[str, _AnyDataset]
    backbones: dict[str, _AnyBackbone]
    saes: dict[str, _AnySae] = Field(default_factory=dict)
    sweeps: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The members of each sweep, which are among `saes`; in YAML a base and a grid, see `pipeline.sweeps`."""
    evaluations: dict[str, _AnyEvaluation] = Field(default_factory=dict)

    @field_validator("name", "datasets", "backbones", "saes", "sweeps", "evaluations")
    @classmethod
    def _names_are_plain(cls, value: Any) -> Any:
        for name in [value] if isinstance(value, str) else value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"the name `{name}` needs lower-case letters, digits, `.`, `_` and `-` only")
        return value

    @model_validator(mode="after")
    def _references_exist(self) -> Experiment:
        for section in ("saes", "evaluations"):
            for owner, config in getattr(self, section).items():
                for field, info in type(config).model_fields.items():
                    extra = info.json_schema_extra
                    if not isinstance(extra, dict) or "names" not in extra:
                        continue
                    known = getattr(self, str(extra["names"]))
                    name = getattr(config, field)
                    if name is not None and name not in known:
                        raise ValueError(
                            f"{section}.{owner}.{field} names `{name}`, which is not in {extra['names']}"
                            f"{nearest(name, known)}"
                        )
        check_distinct(self.sweeps, self.saes)
        return self


_SECTION_OF_STAGE = {
    "index": ("datasets", ()),
    "weights": ("backbones", ()),
    "extract": ("backbones", ("extract",)),
    "train": ("saes", ()),
    "import": ("saes", ()),
}


def _targets(raw: dict[str, Any], path: str) -> list[tuple[dict[str, Any], str]]:
    """The (mapping, field) pairs that `--set path=...` speaks of.

    `train.lr` is `lr` of every SAE, `train/relu.lr` of one; `saes.relu.lr` is the path in the YAML.
    """
    head, _, rest = path.partition(".")
    stage, _, only = head.partition("/")
    fields = rest.split(".")
    if stage in _SECTION_OF_STAGE:
        section, prefix = _SECTION_OF_STAGE[stage]
        owners = {name: raw.get(section, {})[name] for name in raw.get(section, {}) if only in ("", name)}
        if section == "saes":
            owners = {
                name: config
                for name, config in owners.items()
                if (isinstance(config, dict) and config.get("kind") == "imported") == (stage == "import")
            }
        fields = [*prefix, *fields]
    elif stage in _KINDS["evaluations"]:
        owners = {
            name: config
            for name, config in raw.get("evaluations", {}).items()
            if isinstance(config, dict) and config.get("kind") == stage and only in ("", name)
        }
    elif stage in Experiment.model_fields:
        owners = {"": raw}
        fields = path.split(".")
    else:
        known = [*_SECTION_OF_STAGE, *_KINDS["evaluations"], *Experiment.model_fields]
        raise UserError(f"--set {path}: `{stage}` is no stage and no section{nearest(stage, known)}")
    if not owners:
        raise UserError(f"--set {path}: the experiment has no such {stage}.")
    targets = []
    for owner in owners.values():
        for field in fields[:-1]:
            owner = owner.setdefault(field, {})
            if not isinstance(owner, dict):
                raise UserError(f"--set {path}: `{field}` has no fields.")
        targets.append((owner, fields[-1]))
    return targets


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Applies `path=value` strings in place; values are read as YAML."""
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals or not path:
            raise UserError(f"--set {override}: write FIELD=VALUE, for example train.l1_coefficient=1e-4.")
        for owner, field in _targets(raw, path):
            owner[field] = _yaml_value(value)


def _yaml_value(text: str) -> Any:
    # YAML 1.1 reads 1e-4 as a string; people mean a number.
    try:
        return float(text) if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text) else yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def parse(text: str, where: str, overrides: Sequence[str] = ()) -> Experiment:
    """An experiment from YAML. `where` names the file in errors."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}: not valid YAML{line}: {getattr(error, 'problem', error)}.") from None
    if not isinstance(raw, dict):
        raise UserError(
            f"{where}: an experiment is a mapping with name, datasets, backbones, saes, evaluations."
        )
    expand(raw, _KINDS["saes"], _yaml_value, where)
    apply_overrides(raw, overrides)
    try:
        return Experiment.model_validate(raw)
    except ValidationError as error:
        raise explain(error, where) from None


def load(source: str, presets: Path, overrides: Sequence[str] = ()) -> Experiment:
    """An experiment by preset name or by the path of a YAML file. Raises UserError if it is neither."""
    preset = presets / f"{source}.yaml"
    path = preset if preset.is_file() else Path(source).expanduser()
    if not path.is_file():
        known = [file.stem for file in presets.glob("*.yaml")]
        raise UserError(f"{source}: neither a preset nor a YAML file{nearest(source, known)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({error}).") from None
    return parse(text, str(path) if path is not preset else f"preset {source}", overrides)
