"""Opens and saves matplotlib figures; matplotlib is an optional extra.

Every figure has the style and colours of this module, independent of the user's
settings, and the same numbers give the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

from edgecs.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMS = ("png", "svg")
LIGHT = {
    "ink": "#1d2329",
    "dim": "#5a646f",
    "line": "#d5dbe1",
    "paper": "#ffffff",
    "s0": "#2b5c9e",
    "s1": "#b8560f",
    "s2": "#2f7d4f",
    "s3": "#7b4ea3",
    "s4": "#0f7783",
    "s5": "#b23a48",
    "s6": "#76660f",
    "s7": "#4a5560",
}
"""Colours by name, on white; s0 to s7 are series."""

_POINTS = 72  # per inch
_DOTS = 200  # of a PNG, per inch
_INK, _DIM, _PAPER = (LIGHT[name] for name in ("ink", "dim", "paper"))
_STYLE = {
    "axes.edgecolor": _DIM,
    "axes.facecolor": "none",
    "axes.labelcolor": _DIM,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": _PAPER,
    "font.size": 11,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "savefig.facecolor": _PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "edgecs",  # stable ids
    "text.color": _INK,
    "text.parse_math": False,  # names may contain $
    "xtick.color": _DIM,
    "xtick.labelsize": 10.5,
    "ytick.color": _DIM,
    "ytick.labelcolor": _INK,
    "ytick.labelsize": 10.5,
}
# Leaves out the version of matplotlib and the date.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
}


def is_installed() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def require() -> None:
    """Raises ConfigError if matplotlib is missing."""
    if not is_installed():
        raise ConfigError('drawing needs matplotlib: pip install "edgecs[plot]"')


def open_figure(width: float, height: float) -> Figure:
    """An empty figure; sizes in points, which are the units of an SVG."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / _POINTS, height / _POINTS), layout="constrained")


def saved(make: Callable[[], Figure], form: str) -> bytes:
    """The figure as a file of one of FORMS; raises what `require` raises.

    make: opens the figure and draws it with the style.
    """
    require()
    from matplotlib import style

    file = BytesIO()
    with warnings.catch_warnings(), style.context(("default", _STYLE)):
        # A page has its own fonts, and a missing glyph is not an error.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        make().savefig(file, format=form, dpi=_DOTS, metadata=_METADATA[form])
    return file.getvalue()
