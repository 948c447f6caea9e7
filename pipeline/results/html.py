"""HTML that a notebook shows of the objects of the Python API. It needs no files: pictures are data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from PIL import Image


def picture(image: Image.Image, title: str = "") -> str:
    """An image as WebP inside an `img` element."""
    out = io.BytesIO()
    image.convert("RGB").save(out, "WEBP", quality=85)
    data = base64.b64encode(out.getvalue()).decode()
    text = escape(title, quote=True)
    return f'<img alt="{text}" title="{text}" src="data:image/webp;base64,{data}">'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table. Cells may be any value; numbers have four digits."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_text(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def figures(pictures: Sequence[Image.Image], captions: Sequence[str]) -> str:
    """Pictures beside each other, each with its caption below."""
    cells = (
        f'<figure style="display:inline-block;margin:4px">{picture(image, caption)}'
        f'<figcaption style="max-width:{image.width}px">{escape(caption)}</figcaption></figure>'
        for image, caption in zip(pictures, captions, strict=True)
    )
    return f"<div>{''.join(cells)}</div>"


def heading(text: str, below: str = "") -> str:
    """A line in bold, and a line below it."""
    more = f"<div>{escape(below)}</div>" if below else ""
    return f"<div><b>{escape(text)}</b></div>{more}"


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
