"""Pieces of a self-contained page: the document, tables and figures. Every text from outside is escaped."""

import base64
import html
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from sdecor.report.style import figure_bytes

_SCRIPTS = ("pixels.js", "state.js", "gallery.js", "page.js")
# Nothing is ever loaded from elsewhere; a browser is told so.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def document(title: str, body: str) -> str:
    """Return a whole page with its style and scripts inside."""
    scripts = "\n".join(part(name) for name in _SCRIPTS)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{part('page.css')}</style>\n</head>\n<body>\n{body}\n"
        f'<script type="module">\n{scripts}</script>\n</body>\n</html>\n'
    )


def part(name: str) -> str:
    """Return the content of a file in `assets`."""
    return resources.files("sdecor.report").joinpath("assets", name).read_text(encoding="utf-8")


def text(value: Any) -> str:
    """Return a value as text that cannot be markup."""
    return html.escape(str(value), quote=True)


def table(head: Iterable[str], rows: Iterable[str], *, label: str, wide: bool = False) -> str:
    """Return a table of given cells, which scrolls sideways where it must.

    Args:
      head: `th` cells; empty for a table without a head.
      rows: `tr` elements.
      label: what a reader who cannot see it is told.
      wide: keep the first column in view while it scrolls.
    """
    head, body = "".join(head), "\n".join(rows)
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    region = f'class="scroll{" wide" if wide else ""}" tabindex="0" role="region" aria-label="{text(label)}"'
    return f"<div {region}><table>{head}<tbody>\n{body}\n</tbody></table></div>"


def figure(heading: str, caption: str, themes: Mapping[str, Any]) -> str:
    """Return a figure that follows the reader's light or dark theme.

    Args:
      heading: what a reader who cannot see it is told.
      caption: below it.
      themes: figure by theme, under "light" and, optionally, under "dark".
    """
    sources = {theme: _data_uri(drawn) for theme, drawn in themes.items()}
    dark = sources.get("dark")
    source = f'<source srcset="{dark}" media="screen and (prefers-color-scheme: dark)">' if dark else ""
    image = f'<img src="{sources["light"]}" alt="{text(heading)}">'
    return f"<figure><picture>{source}{image}</picture><figcaption>{text(caption)}</figcaption></figure>"


def _data_uri(drawn: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(figure_bytes(drawn)).decode()
