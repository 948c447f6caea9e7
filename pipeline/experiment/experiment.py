"""`Experiment`: maps from names to configs, which refer to each other by these names.

The command line and the flows read one from a preset or a YAML file with `load`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from patchsae.pipeline.adapters.adapter import AdapterConfig
from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.core import registry
from patchsae.pipeline.core.config import Config, explain
from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.text import nearest
from patchsae.pipeline.evaluations.evaluation import EvaluationConfig
from patchsae.pipeline.experiment import bounded_yaml, kinds
from patchsae.pipeline.experiment.dag import Dag
from patchsae.pipeline.experiment.locations import make_absolute
from patchsae.pipeline.experiment.overrides import Override, apply_override
from patchsae.pipeline.experiment.sweeps import check_distinct, expand
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.saes.sae import SaeConfig
from patchsae.storage.errors import UserError
from patchsae.storage.files import expanded

PRESETS = Path(__file__).parent / "presets"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
# The unions are made from the kinds that are found at run time, so a type checker is given their base
# classes.
if TYPE_CHECKING:
    _AnyDataset = DatasetConfig
    _AnyBackbone = BackboneConfig
    _AnyAdapter = AdapterConfig
    _AnySae = SaeConfig
    _AnyEvaluation = EvaluationConfig
else:
    _AnyDataset = registry.union(kinds.DATASETS)
    _AnyBackbone = registry.union(kinds.BACKBONES)
    _AnyAdapter = registry.union(kinds.ADAPTERS)
    _AnySae = registry.union(kinds.SAES)
    _AnyEvaluation = registry.union(kinds.EVALUATIONS)


class Experiment(Config):
    """A whole experiment, as a preset or a user's YAML file describes it."""

    name: str
    description: str = ""
    datasets: dict[str, _AnyDataset]
    backbones: dict[str, _AnyBackbone]
    adapters: dict[str, _AnyAdapter] = Field(default_factory=dict)
    """Adapters of a backbone. An adapter's name can stand wherever a backbone's does."""
    saes: dict[str, _AnySae] = Field(default_factory=dict)
    sweeps: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The names of each sweep's members, which are in `saes` or in `adapters`. The YAML file has a base and a grid instead,
    see `pipeline.experiment.sweeps`."""
    evaluations: dict[str, _AnyEvaluation] = Field(default_factory=dict)

    @field_validator("name", "datasets", "backbones", "adapters", "saes", "sweeps", "evaluations")
    @classmethod
    def _names_are_plain(cls, value: Any) -> Any:
        for name in [value] if isinstance(value, str) else value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"the name `{name}` needs lower-case letters, digits, `.`, `_` and `-` only")
        return value

    @model_validator(mode="after")
    def _references_exist(self) -> Experiment:
        for section in ("backbones", "adapters", "saes", "evaluations"):
            for owner, config in getattr(self, section).items():
                for field, others in config.names_in().items():
                    there = [other for other in others if getattr(self, other)] or others[:1]
                    known = [name for other in there for name in getattr(self, other)]
                    named = getattr(config, field)
                    for name in named if isinstance(named, tuple) else [named]:
                        if name is not None and name not in known:
                            raise ValueError(
                                f"{section}.{owner}.{field} names `{name}`, which is not in {' or '.join(there)}"
                                f"{nearest(name, known)}"
                            )
        for name in self.adapters:
            if name in self.backbones:
                raise ValueError(
                    f"`{name}` is in backbones and in adapters, where one name stands for one model; rename one"
                )
        check_distinct(self.sweeps, {**self.adapters, **self.saes})
        return self

    def nodes(self) -> list[Node]:
        """Every stage instance, each after its inputs. Raises UserError if configs do not fit together."""
        dag = Dag(self.datasets, self.backbones, self.saes, self.evaluations, self.adapters)
        return dag.all_nodes()


def _read_value(text: str, where: str) -> Any:
    """The value of a `--set`, which is plain text if it is not YAML."""
    try:
        return bounded_yaml.read(text, where)
    except bounded_yaml.NotYaml:
        return text


def _is_valid(raw: dict[str, Any]) -> bool:
    try:
        Experiment.model_validate(raw)
    except ValidationError:
        return False
    return True


def _blamed(error: ValidationError, overrides: Sequence[Override]) -> str | None:
    """The last override that set the field in which the first fault is, as the user wrote it."""
    # After `saes.relu` pydantic inserts the kind of the config.
    location = tuple(map(str, error.errors()[0]["loc"]))
    location = location[:2] + location[3:]
    for override in reversed(overrides):
        for path in override.paths:
            if location[: len(path)] == path or (location and path[: len(location)] == location):
                return f"--set {override.text}"
    return None


def parse(text: str, where: str, overrides: Sequence[str] = (), folder: Path | None = None) -> Experiment:
    """An experiment from YAML text and `PATH=VALUE` overrides. `where` names the file in errors.

    Paths in the text are relative to `folder`, those in overrides to the working directory, which is the default
    of `folder` too. Raises UserError if the text is not a valid experiment.
    """
    try:
        raw = bounded_yaml.read(text, where)
    except bounded_yaml.NotYaml as error:
        raise UserError(f"{where}: {error}.") from None
    if not isinstance(raw, dict):
        raise UserError(
            f"{where}: an experiment is a mapping with name, datasets, backbones, adapters, saes, evaluations."
        )
    expand(raw, {section: kinds.KINDS[section] for section in ("saes", "adapters")}, where)
    make_absolute(raw, folder or Path.cwd(), where)
    set_: list[Override] = []

    def validated(raw: dict[str, Any]) -> Experiment:
        try:
            return Experiment.model_validate(raw)
        except ValidationError as error:
            raise explain(error, _blamed(error, set_) or where) from None

    before = copy.deepcopy(raw) if overrides else raw
    sections = list(Experiment.model_fields)
    try:
        for override in overrides:
            set_.append(
                apply_override(raw, override, sections, lambda raw: validated(raw).nodes(), _read_value)
            )
            make_absolute(raw, Path.cwd(), f"--set {override}")
        return validated(raw)
    except UserError as error:
        # A fault of several fields at once, such as the name of no entry, is that of `--set` if the file has none.
        if not set_ or not str(error).startswith(f"{where}: ") or not _is_valid(before):
            raise
        sets = ", ".join(f"--set {override.text}" for override in set_)
        raise UserError(str(error).replace(where, sets, 1)) from None


def load(source: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a preset, given by its name, or of a YAML file, given by its path.

    Paths in a file are relative to its folder, those in a preset and in overrides to the working directory.
    Raises UserError if `source` is neither or the experiment is not valid.
    """
    preset = PRESETS / f"{source}.yaml"
    path = preset if preset.is_file() else expanded(source)
    if not path.is_file():
        known = [file.stem for file in PRESETS.glob("*.yaml")]
        raise UserError(f"{source}: neither a preset nor a YAML file{nearest(source, known)}")
    if path.stat().st_size > bounded_yaml.MAX_BYTES:
        raise UserError(f"{path}: has more than {bounded_yaml.MAX_BYTES:,} bytes, which no experiment has.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({error}).") from None
    if path is preset:
        return parse(text, f"preset {source}", overrides)
    return parse(text, str(path), overrides, path.parent)
