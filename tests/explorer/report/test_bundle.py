"""`bundle`: a page's modules as one script that needs no module loader."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchsae.explorer.report.bundle import UnsupportedModule, bundle


def _bundled(folder: Path, **modules: str) -> str:
    for name, source in modules.items():
        (folder / f"{name}.js").write_text(source)
    return bundle(folder, "main.js")


def _refusal(folder: Path, **modules: str) -> str:
    with pytest.raises(UnsupportedModule) as caught:
        _bundled(folder, **modules)
    return str(caught.value)


def test_a_module_stands_once_and_behind_what_it_imports(tmp_path: Path) -> None:
    script = _bundled(
        tmp_path,
        main='import { a } from "./first.js";\nimport { b } from "./second.js";\na(b);\n',
        first='import { c } from "./shared.js";\nexport function a() { return c; }\n',
        second='import { c } from "./shared.js";\nexport const b = c;\n',
        shared="export const c = 1;\n",
    )
    order = [script.index(f"// {name}.js\n") for name in ("shared", "first", "second", "main")]
    assert order == sorted(order)
    assert script.count("// shared.js\n") == 1
    assert "import" not in script
    assert "export" not in script


def test_every_form_that_the_pages_use_is_translated(tmp_path: Path) -> None:
    script = _bundled(
        tmp_path,
        main='import {\n  a,\n  b as other,\n} from "./x.js";\n',
        x="export async function a() {}\nexport const b = { import: 1, export: 2 };\nexport class C {}\n"
        "export function* d() {}\n",
    )
    assert "const { a, b: other } = module_x;" in script
    assert "return { a, b, C, d };" in script


def test_modules_in_folders_are_found_from_the_module_that_imports_them(tmp_path: Path) -> None:
    (tmp_path / "draw").mkdir()
    (tmp_path / "draw/map.js").write_text(
        'import { a } from "../x.js";\nimport { c } from "./x.js";\nexport const b = a + c;\n'
    )
    (tmp_path / "draw/x.js").write_text("export const c = 1;\n")
    script = _bundled(tmp_path, main='import { b } from "./draw/map.js";\nb;\n', x="export const a = 1;\n")
    order = [script.index(f"// {name}.js\n") for name in ("x", "draw/x", "draw/map", "main")]
    assert order == sorted(order)
    assert "const { c } = module_draw$x;" in script
    assert "const { b } = module_draw$map;" in script


def test_lines_of_a_module_keep_their_distance(tmp_path: Path) -> None:
    main = 'import {\n  a,\n} from "./x.js";\nhere();\n'
    script = _bundled(tmp_path, main=main, x="export const a = 1;\n").splitlines()
    assert script.index("here();") - script.index("const module_main = (function () {") == 4


@pytest.mark.parametrize(
    "line",
    [
        'import a from "./x.js";',
        'import * as a from "./x.js";',
        'import "./x.js";',
        'import { a } from "https://example.org/x.js";',
        'import { a } from "../x.js";',
        'const a = await import("./x.js");',
        'import("./x.js").then(show);',
        "const here = import.meta.url;",
        "export default function a() {}",
        "export { a };",
        "export let a = 1;",
        'export { a } from "./x.js";',
        "export const { a, b } = c;",
        'await get("home");',
    ],
)
def test_another_form_is_an_error_that_names_file_and_line(tmp_path: Path, line: str) -> None:
    message = _refusal(tmp_path, main=f"const z = 1;\n{line}\n", x="export const a = 1;\n")
    assert f"{tmp_path / 'main.js'}, line 2: " in message


def test_a_name_that_is_not_exported_is_an_error(tmp_path: Path) -> None:
    message = _refusal(
        tmp_path, main='import { b } from "./x.js";\n', x="export const a = 1;\nconst b = 2;\n"
    )
    assert message == f"{tmp_path / 'main.js'}, line 1: x.js exports no 'b'."


def test_modules_in_a_circle_are_an_error(tmp_path: Path) -> None:
    message = _refusal(
        tmp_path,
        main='import { a } from "./x.js";\n',
        x='import { b } from "./y.js";\nexport const a = 1;\n',
        y='import { a } from "./x.js";\nexport const b = 1;\n',
    )
    assert "in a circle (x -> y -> x)" in message


def test_a_missing_module_is_an_error(tmp_path: Path) -> None:
    assert "x.js: is not there, but is imported by main.js." in _refusal(
        tmp_path, main='import { a } from "./x.js";\n'
    )
