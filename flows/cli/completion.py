"""What the shell offers after a tab. It reads names of files and records only, and imports nothing heavy.

An experiment that was run has a record in the store, with every address. Of one that was not, the addresses that
follow from the names in its YAML file are offered.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patchsae import pipeline

_PIPELINE = Path(pipeline.__path__[0])
PRESETS = _PIPELINE / "experiment" / "presets"
_KINDS = {
    "datasets": _PIPELINE / "images" / "datasets",
    "backbones": _PIPELINE / "backbones" / "models",
    "adapters": _PIPELINE / "adapters" / "methods",
    "saes": _PIPELINE / "training" / "objectives",
    "evaluations": _PIPELINE / "evaluations" / "kinds",
}
# Those of `pipeline.saes.files`, whose import would load torch.
WRITABLE_FORMATS = ("dictionary_learning", "patchsae", "saelens", "saev", "saev-0.1")
READABLE_FORMATS = ("dictionary_learning", "patchsae", "reference", "saelens", "saev")
_STAGES = ("index", "few_shot", "weights", "extract", "classifier", "features", "adapt", "train", "import")
_KIND = re.compile(r"^    kind: Literal\[\"(\w+)\"\]", re.MULTILINE)


def presets() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def experiments(incomplete: str) -> list[str]:
    """Presets, YAML files, and folders in which there may be some."""
    folder = Path(os.path.dirname(incomplete) or ".").expanduser()  # noqa: PTH120 (`a/` has the folder `a`)
    typed = incomplete[: incomplete.rfind("/") + 1]
    found = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.name.startswith("."):
                found.append(f"{typed}{path.name}/")
            elif path.suffix in (".yaml", ".yml"):
                found.append(f"{typed}{path.name}")
    return _beginning(incomplete, [*presets(), *sorted(found)])


def kinds(incomplete: str) -> list[str]:
    """Every kind and every section."""
    return _beginning(
        incomplete, [*_KINDS, *(kind for section in _KINDS for kind in _kinds_of(section)), "imported"]
    )


def records(ctx: Any, incomplete: str) -> list[str]:
    """The names of the experiments that were run in the store."""
    return _beginning(incomplete, sorted(path.stem for path in _record_files(ctx)))


def saes(ctx: Any, incomplete: str) -> list[str]:
    """The addresses of the SAEs in the store."""
    found = {
        a for path in _record_files(ctx) for a in _addresses(path) if a.startswith(("train/", "import/"))
    }
    return _beginning(incomplete, sorted(found))


def sae_names(ctx: Any, incomplete: str) -> list[str]:
    """The names of the SAEs in the store."""
    return _beginning(incomplete, sorted({word.partition("/")[2] for word in saes(ctx, "")}))


def coop_names(incomplete: str) -> list[str]:
    """The data sets of `data`."""
    from patchsae.pipeline.images.coop.facts import FACTS

    return _beginning(incomplete, list(FACTS))


def formats_to_write(incomplete: str) -> list[str]:
    """The formats of `export`."""
    return _beginning(incomplete, list(WRITABLE_FORMATS))


def formats_to_read(incomplete: str) -> list[str]:
    """The formats of `import`."""
    return _beginning(incomplete, list(READABLE_FORMATS))


def addresses(ctx: Any, incomplete: str) -> list[str]:
    """The stages and addresses of the experiment that the command names."""
    # While an option is completed, the arguments of the command are not parsed yet.
    experiment = str(ctx.params.get("experiment") or next(iter(ctx.args), ""))
    found = {*_STAGES, *_kinds_of("evaluations")}
    preset = PRESETS / f"{experiment}.yaml"
    path = preset if preset.is_file() else Path(experiment).expanduser()
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        content = _yaml(path.read_text(encoding="utf-8"))
        found |= set(_addresses_of(content))
        for record in _record_files(ctx):
            if record.stem == content.get("name"):
                found |= set(_addresses(record))
    return _beginning(incomplete, sorted(found))


def _yaml(text: str) -> Any:
    from patchsae.pipeline.experiment import bounded_yaml

    return bounded_yaml.read(text, "")


def _addresses_of(content: dict[str, Any]) -> Iterator[str]:
    for name in content.get("datasets") or {}:
        yield f"index/{name}"
    for name in content.get("backbones") or {}:
        yield f"weights/{name}"
    for name in content.get("adapters") or {}:
        yield f"adapt/{name}"
        yield f"weights/{name}"
    for name, sae in (content.get("saes") or {}).items():
        yield f"{'import' if sae.get('kind') == 'imported' else 'train'}/{name}"
        yield f"extract/{sae['dataset']}-{sae['backbone']}"
    for name, evaluation in (content.get("evaluations") or {}).items():
        yield f"{evaluation['kind']}/{name}"


def _kinds_of(section: str) -> list[str]:
    """The kinds that the modules of a folder define, read from their text."""
    return sorted(
        kind
        for path in _KINDS[section].glob("*.py")
        for kind in _KIND.findall(path.read_text(encoding="utf-8"))
    )


def _record_files(ctx: Any) -> list[Path]:
    store = ctx.params.get("store") or os.environ.get("PATCHSAE_STORE") or "./store"
    return sorted((Path(str(store).removeprefix("file://")).expanduser() / "experiments").glob("*.json"))


def _addresses(record: Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        return list(json.loads(record.read_text(encoding="utf-8"))["nodes"])
    return []


def _beginning(incomplete: str, words: list[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
