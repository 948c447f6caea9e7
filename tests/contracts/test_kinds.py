"""What holds for the folders of kinds: they hold kinds and nothing else, and importing them costs and needs little."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

from patchsae.pipeline.adapters import methods
from patchsae.pipeline.backbones import models
from patchsae.pipeline.core.config import Config
from patchsae.pipeline.evaluations import kinds
from patchsae.pipeline.experiment.kinds import KINDS, STAGES
from patchsae.pipeline.images import datasets
from patchsae.pipeline.training import objectives


@pytest.mark.parametrize(
    "package", [datasets, models, methods, objectives, kinds], ids=lambda one: one.__name__
)
def test_a_kinds_folder_holds_kinds_and_nothing_else(package: ModuleType) -> None:
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        own = [
            value.model_fields["kind"].default
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, Config)
            and value.__module__ == module.__name__
            and "kind" in value.model_fields
        ]
        assert own == [info.name], f"{module.__name__} should hold the kind `{info.name}` and no other"


def test_every_kind_is_found() -> None:
    assert {section: sorted(found) for section, found in KINDS.items()} == {
        "datasets": sorted(info.name for info in pkgutil.iter_modules(datasets.__path__)),
        "backbones": sorted(info.name for info in pkgutil.iter_modules(models.__path__)),
        "adapters": sorted(info.name for info in pkgutil.iter_modules(methods.__path__)),
        "saes": sorted([*(info.name for info in pkgutil.iter_modules(objectives.__path__)), "imported"]),
        "evaluations": sorted(info.name for info in pkgutil.iter_modules(kinds.__path__)),
    }
    for name, stage in STAGES.items():
        assert stage.name == name and stage.description.endswith(".") and stage.section in KINDS


def test_everything_imports_without_triton_and_without_loading_models() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import patchsae.pipeline.experiment.kinds, patchsae.flows.cli.app, patchsae.api\n"
        "from patchsae.pipeline.experiment.experiment import load\n"
        "from patchsae.pipeline.experiment.request import work_on\n"
        "from patchsae.storage.store import Store\n"
        "for preset in ('demo-sweep', 'imagenet-vit-b16'):\n"
        "    work_on(Store('nowhere'), load(preset, ['datasets.imagenet.root=/gone'] if 'imagenet' in preset else []))\n"
        "print(*{'open_clip', 'prefect', 'distributed', 'visaebench', 'wandb'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
