"""The common style of all figures: themes, panels, legends, and writing to a file.

Figures use matplotlib's object-oriented interface, which has no global state and is safe in threads. matplotlib is
imported in the functions that use it, so that importing `sdecor` stays fast.
"""

import io
import math
import os
from collections.abc import Collection, Mapping
from typing import Any

from sdecor.core.checks import check_choice
from sdecor.core.files import write_file

COLORS = ("#4477aa", "#ee7733", "#228833", "#aa3377", "#66ccee", "#ccbb44", "#882255", "#44aa99", "#999933", "#8888aa")
THEMES = {
    "light": {"paper": "#ffffff", "ink": "#1d2433", "faint": "#697386", "grid": "#e4e7ec"},
    "dark": {"paper": "#161a22", "ink": "#e8eaf0", "faint": "#98a2b3", "grid": "#2c3340"},
}
RIGHT, WRONG = "#2f9e58", "#d9483b"
DPI = 200
_EMBEDDED = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "sdecor"}
_UNDATED = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def save_figure(figure: Any, path: Any, *, dpi: int = DPI) -> None:
    """Write a figure to a file; a reader never sees half a file, and equal figures give equal bytes.

    Args:
      figure: result of a `figure_…` function.
      path: path, local or remote; its ending (.png, .pdf, .svg) is the format. Text is TrueType fonts in PDF, and
        outlines in SVG.
      dpi: pixels per inch of PNG, and of pictures inside PDF and SVG.
    """
    kind = os.path.splitext(os.fspath(path))[1]
    write_file(path, figure_bytes(figure, kind[1:] or "png", dpi=dpi))


def figure_bytes(figure: Any, kind: str = "png", *, dpi: int = DPI) -> bytes:
    """Return the figure, encoded in the format `kind`."""
    import matplotlib

    check_choice("format of the figure", kind, tuple(_UNDATED))
    buffer = io.BytesIO()
    with matplotlib.rc_context(_EMBEDDED):
        figure.savefig(buffer, format=kind, dpi=dpi, facecolor=figure.get_facecolor(), metadata=_UNDATED[kind])
    return buffer.getvalue()


def theme_colors(theme: str) -> dict[str, str]:
    """Return the colors of the theme "light" or "dark"."""
    check_choice("theme", theme, tuple(THEMES))
    return THEMES[theme]


_ROOM = 0.72  # inches: a legend of three lines


def new_figure(width: float, height: float, color: Mapping[str, str]) -> Any:
    """Return an empty figure; width and height are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor=color["paper"])


def verbatim(text: Any, *, legend: bool = False) -> str:
    """Return text that matplotlib writes literally: no formula at `$`, and no hidden legend entry at a leading `_`."""
    text = str(text).replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{text}" if legend and text.startswith("_") else text


def dress(axes: Any, color: Mapping[str, str], title: str, xlabel: str, *, small: bool = False) -> None:
    """Set a panel's title, label, grid and colors."""
    axes.set_facecolor(color["paper"])
    axes.set_title(verbatim(title), color=color["ink"], fontsize=9 if small else 11, loc="left", pad=8)
    axes.set_xlabel(verbatim(xlabel), color=color["faint"], fontsize=8 if small else 9)
    axes.tick_params(colors=color["faint"], labelsize=8, length=0)
    axes.grid(True, color=color["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def axes_at(figure: Any, left: float, top: float, width: float, height: float) -> Any:
    """Add axes placed in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def legend_height(labels: Collection[str], width: float) -> float:
    """Return the height of a legend below a figure of this width, in inches."""
    return 0.12 + 0.2 * math.ceil(len(labels) / _columns(labels, width)) if labels else 0.0


def _columns(labels: Collection[str], width: float) -> int:
    """Return the number of a legend's columns."""
    longest = max((len(label) for label in labels), default=0)
    return max(1, min(len(labels), int(width / (0.5 + 0.075 * longest))))


def legend_below(figure: Any, color: Mapping[str, str], *, lay_out: bool = False) -> None:
    """Add one legend below all panels, with each name once.

    Args:
      figure: the figure, with its panels.
      color: colors of the theme.
      lay_out: whether to fit the panels above the legend. A figure has room for a legend of `_ROOM`, and becomes taller
        for a larger one.
    """
    found = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    width, height = figure.get_size_inches()
    columns, below = _columns(found, width), legend_height(found, width)
    if lay_out:
        height += max(0.0, below - _ROOM)
        figure.set_size_inches(width, height)
        figure.tight_layout(rect=(0, below / height, 1, 1), w_pad=2.5, h_pad=1.5)
    if found:
        style = {"loc": "lower center", "frameon": False, "fontsize": 8.5, "labelcolor": color["ink"]}
        figure.legend(found.values(), found.keys(), ncols=columns, **style)
