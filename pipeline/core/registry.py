"""Finds the kinds of datasets, backbones, adapters, SAEs and evaluations, for `pipeline.experiment.kinds`.

Every module of a kinds folder that defines a config with a field `kind` adds that kind. No other list exists.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Annotated, Any, TypeVar, Union

from pydantic import Field

from patchsae.pipeline.core.config import Config

C = TypeVar("C", bound=Config)


def variants(package: ModuleType, base: type[C]) -> dict[str, type[C]]:
    """Imports every module of `package` and returns kind -> config class, for subclasses of `base`."""
    found: dict[str, type[C]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, base) and "kind" in value.model_fields:
                found[value.model_fields["kind"].default] = value
    return dict(sorted(found.items()))


def union(kinds: Mapping[str, type[Config]]) -> Any:
    """The union of several kinds' configs, told apart by `kind`, for use as the type of a field."""
    return Annotated[Union[tuple(kinds.values())], Field(discriminator="kind")]  # noqa: UP007
