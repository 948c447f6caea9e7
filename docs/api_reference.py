"""Writes the reference of the Python API for docs/api.md from the text of `src/patchsae/api.py`.

Types and defaults stand as they do in the module, and names in its order. Names that begin with an underscore are
left out, as are fields of such a type.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from itertools import zip_longest


def reference(source: str) -> str:
    """Every public function, class and method of the module with the text `source`, as Markdown."""
    body = ast.parse(source).body
    parts = [part for node, following in zip_longest(body, body[1:]) for part in _definition(node, following)]
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for name in _exported(body):  # What is defined elsewhere stands last.
        if name not in defined:
            imported = getattr(importlib.import_module("patchsae.api"), name)
            bases = ", ".join(base.__name__ for base in imported.__bases__)
            parts += [f"## `{name}`", _block(f"class {name}({bases})"), _prose(inspect.getdoc(imported))]
    return "\n\n".join(parts)


def _definition(node: ast.stmt, following: ast.stmt | None) -> Iterator[str]:
    """The parts of the page about one statement of the module; a type's docstring is the `following` one."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_public(name):
            yield from (f"## `{name}`", _block(f"{name} = {ast.unparse(value)}"))
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield _prose(inspect.cleandoc(text))
        case ast.FunctionDef(name=name) if _is_public(name):
            yield from (f"## `{name}`", _signature(f"patchsae.{name}", node), _prose(ast.get_docstring(node)))
        case ast.ClassDef(name=name) if _is_public(name):
            fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
            lines = [f"    {ast.unparse(one)}" for one in fields if not _is_private_type(one.annotation)]
            header = f"class {name}:" if lines else f"class {name}"
            yield from (f"## `{name}`", _block("\n".join([header, *lines])), _prose(ast.get_docstring(node)))
            for one in node.body:
                if isinstance(one, ast.FunctionDef) and _is_public(one.name):
                    yield f"### `{name}.{one.name}`"
                    yield _signature(f"{name}.{one.name}", one, is_method=True)
                    yield _prose(ast.get_docstring(one))


def _signature(name: str, node: ast.FunctionDef, is_method: bool = False) -> str:
    """How `name` is called, or the type of a property."""
    returns = ast.unparse(node.returns) if node.returns else "None"
    if any(ast.unparse(one) in ("property", "cached_property") for one in node.decorator_list):
        return _block(f"{name}: {returns}")
    arguments = node.args
    if (
        node.decorator_list
        or arguments.posonlyargs
        or arguments.kwonlyargs
        or arguments.vararg
        or arguments.kwarg
    ):
        raise SystemExit(f"docs/api_reference.py: cannot write the signature of `{name}` yet.")
    n_required = len(arguments.args) - len(arguments.defaults)
    defaults = ["", *(f" = {ast.unparse(one)}" for one in arguments.defaults)]
    texts = [
        ast.unparse(one) + defaults[max(0, position - n_required + 1)]
        for position, one in enumerate(arguments.args)
    ]
    return _block(f"{name}({', '.join(texts[is_method:])}) -> {returns}")


def _prose(docstring: str | None) -> str:
    """The paragraphs of a docstring, without its examples."""
    paragraphs = (docstring or "").split("\n\n")
    return "\n\n".join(one for one in paragraphs if not one.lstrip().startswith(">>>"))


def _exported(body: list[ast.stmt]) -> list[str]:
    """The names in `__all__`."""
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise SystemExit("src/patchsae/api.py: has no `__all__`.")


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _is_private_type(annotation: ast.expr) -> bool:
    return any(isinstance(one, ast.Name) and not _is_public(one.id) for one in ast.walk(annotation))


def _block(text: str) -> str:
    return f"```python\n{text}\n```"
