"""`bundle`: the pages' ES modules as one classic script.

A browser loads no ES modules from a page that was opened as a file, so a report cannot use them. The pages
are written in a part of the language that a few lines can translate: imports `import { a, b as c } from
"./x.js";` (or `"../x.js"`, `"./draw/x.js"`: relative to the module) and exports `export [async] function`,
`export const` and `export class`, each at the start of a line. Everything else of `import` and `export` is refused.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

_IMPORT = re.compile(r'^import \{([^{}]*)\} from "(\.{1,2}/[\w./-]+)\.js";[ \t]*$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=((?:async )?function\*?|const|class) +([A-Za-z_$][\w$]*))", re.MULTILINE)
_REFUSED = re.compile(
    r"^[ \t]*(?:import\b(?!\s*:)|export\b(?!\s*:)|await\b).*$|\bimport\s*\(.*$|\bimport\.meta\b.*$",
    re.MULTILINE,
)
_NAME = re.compile(r"([A-Za-z_$][\w$]*)(?: as ([A-Za-z_$][\w$]*))?")


class UnsupportedModule(ValueError):
    """A module of the pages uses a part of the language that `bundle` does not translate."""


def bundle(folder: Path, entry: str) -> str:
    """The module `entry` (`main.js`) of a folder and all that it imports, as a script in strict mode.

    Every module becomes a function of its own that is called once, in the order in which a browser would
    execute the modules; so names of two modules never meet. Raises UnsupportedModule, which names the file and
    the line, for an import or export of another form, an imported name that is not exported, modules that
    import each other in a circle, and a missing module.
    """
    translated: dict[str, str] = {}
    _add(folder, entry.removesuffix(".js"), translated, ())
    return '"use strict";\n(function () {\n' + "\n".join(translated.values()) + "\n})();\n"


def _add(folder: Path, name: str, translated: dict[str, str], importing: tuple[str, ...]) -> list[str]:
    """Adds a module behind those that it imports. Returns the names it exports."""
    path = folder / f"{name}.js"
    if name in importing:
        circle = " -> ".join([*importing[importing.index(name) :], name])
        raise UnsupportedModule(f"{path}: imports itself in a circle ({circle}).")
    if not path.is_file():
        raise UnsupportedModule(f"{path}: is not there, but is imported by {', '.join(importing[-1:])}.js.")
    source = path.read_text(encoding="utf-8")
    exported = [match[2] for match in _EXPORT.finditer(source)]
    if name in translated:
        return exported

    def imported(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), match[2]))
        if target.startswith("../"):
            raise UnsupportedModule(
                f"{_place(path, source, match.start())}: {match[2]}.js lies outside the pages."
            )
        theirs = _add(folder, target, translated, (*importing, name))
        names = []
        for one in filter(None, (part.strip() for part in match[1].split(","))):
            parts = _NAME.fullmatch(one)
            if parts is None or parts[1] not in theirs:
                raise UnsupportedModule(
                    f"{_place(path, source, match.start())}: {target}.js exports no {one!r}."
                )
            names.append(f"{parts[1]}: {parts[2]}" if parts[2] else parts[1])
        # As many lines as before, so that errors name the right place.
        return f"const {{ {', '.join(names)} }} = {_variable(target)};" + "\n" * match[0].count("\n")

    body = _EXPORT.sub("", _IMPORT.sub(imported, source))
    refused = _REFUSED.search(body)
    if refused is not None:
        raise UnsupportedModule(
            f"{_place(path, body, refused.start())}: {refused[0].strip()!r} is a form that the report's "
            "bundler does not translate; explorer/report/bundle.py lists what it does."
        )
    translated[name] = (
        f"// {name}.js\nconst {_variable(name)} = (function () {{\n{body.rstrip()}\n"
        f"return {{ {', '.join(exported)} }};\n}})();"
    )
    return exported


def _variable(name: str) -> str:
    return "module_" + re.sub(r"[^\w$]", "_", name.replace("/", "$"))


def _place(path: Path, source: str, at: int) -> str:
    return f"{path}, line {source.count(chr(10), 0, at) + 1}"
