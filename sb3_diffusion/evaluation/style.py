"""How the library's pictures look: readable at the width of a README, on white, and for the colour-blind."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette (jfly.uni-koeln.de/color), which colour-blind people can tell apart
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
GREY = "#666666"
WIDTH = 9.0  # inches; at 110 dots per inch what GitHub shows of a README
DPI = 110


def bare(axes: Axes, grid: bool = True) -> None:
    """Without a frame above and to the right, with a thin grid."""
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.set_axisbelow(True)
