"""Variants: every module of a folder that defines a config with a `kind` adds that kind. There is no other list."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Annotated, Any, Union

from pydantic import Field

from pipeline.config import Config


def variants(package: ModuleType | str, base: type[Config]) -> dict[str, type[Config]]:
    """Imports every module of `package`; returns kind -> config class, for the subclasses of `base`."""
    module = importlib.import_module(package) if isinstance(package, str) else package
    found: dict[str, type[Config]] = {}
    for info in pkgutil.iter_modules(module.__path__):
        for value in vars(importlib.import_module(f"{module.__name__}.{info.name}")).values():
            if isinstance(value, type) and issubclass(value, base) and "kind" in value.model_fields:
                found[value.model_fields["kind"].default] = value
    return dict(sorted(found.items()))


def union(kinds: dict[str, type[Config]]) -> Any:
    """The discriminated union of a folder's configs, for use as a field's type."""
    return Annotated[Union[tuple(kinds.values())], Field(discriminator="kind")]  # noqa: UP007
