"""The look of every plot: a palette that colour-blind readers can tell apart, one font, no global setting touched."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detector.files import write_bytes

# Okabe and Ito's palette in an order that also differs in lightness; the yellow is left out, it vanishes on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
TEXT_COLOUR = "#222222"

_DOTS_PER_INCH = 150
_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.edgecolor": "#8C8C8C",
    "axes.labelcolor": TEXT_COLOUR,
    "axes.titlecolor": TEXT_COLOUR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#D9D9D9",
    "grid.linewidth": 0.7,
    "text.color": TEXT_COLOUR,
    "xtick.color": "#4D4D4D",
    "ytick.color": "#4D4D4D",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    # A class or run name may hold a dollar sign, which does not begin a formula.
    "text.parse_math": False,
}


@contextmanager
def plot_style() -> Iterator[None]:
    """Within it, figures are drawn in the project's style."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        yield


def new_figure(width_inches: float, height_inches: float) -> Any:
    """A matplotlib figure that draws without a display and that pyplot, were anybody using it, does not know of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all, and give its path back."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DOTS_PER_INCH, facecolor="white", metadata={"Software": None})
    write_bytes(path, content.getvalue())
    return path
