"""
The figures of docs/overview.md.

    python docs/figures/draw.py        writes docs/figures/augmented_process.png and docs/figures/read_out.png
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_diffusion.evaluation.style import BLUE, GREEN, GREY
from sb3_diffusion.evaluation.style import VERMILLION as ORANGE

HERE = Path(__file__).parent


def circle(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    axes.scatter([x], [y], s=2100, facecolor="white", edgecolor=color, linewidth=2, zorder=2)
    axes.text(x, y, text, ha="center", va="center", fontsize=11, zorder=3)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str, bend: float = 0.0) -> None:
    style = dict(arrowstyle="-|>", color=color, linewidth=1.6, shrinkA=23, shrinkB=23, connectionstyle=f"arc3,rad={bend}")
    axes.annotate("", end, start, arrowprops=style)


def augmented_process() -> Figure:
    """One step of an environment as K + 1 states of the augmented decision process, for K = 3."""
    figure = Figure(figsize=(9, 3.1), dpi=120, layout="constrained")
    axes = figure.subplots()
    latents = ["$s,\\,x^3$", "$s,\\,x^2$", "$s,\\,x^1$"]
    for x, text in enumerate(latents):
        circle(axes, x, 0, text, BLUE)
    circle(axes, 3.3, 0, "$u$", GREEN)
    circle(axes, 4.6, 0, "$s',\\,x'^3$", BLUE)
    for x in range(2):
        arrow(axes, (x, 0), (x + 1, 0), BLUE)
        arrow(axes, (x + 1, 0), (x, 0), ORANGE, bend=-0.6)
        axes.text(x + 0.5, 0.09, f"$q_\\theta(x^{2 - x}|x^{3 - x},s)$", ha="center", fontsize=10, color=BLUE)
        axes.text(x + 0.5, -0.42, f"$\\pi(x^{3 - x}|x^{2 - x})$", ha="center", fontsize=10, color=ORANGE)
        axes.text(x + 0.5, 0.42, f"$-\\tau\\,\\ell_{3 - x}$", ha="center", fontsize=11)
    arrow(axes, (2, 0), (3.3, 0), BLUE)
    axes.text(2.65, 0.09, "$x^0$, read out", ha="center", fontsize=10, color=BLUE)
    axes.text(2.65, 0.42, "$r(s,u)-\\tau\\,\\ell_1$", ha="center", fontsize=11)
    arrow(axes, (3.3, 0), (4.6, 0), GREY)
    axes.text(3.95, 0.09, "environment", ha="center", fontsize=10, color=GREY)
    axes.text(-0.75, 0.42, "soft reward", ha="center", fontsize=10, color=GREY)
    axes.text(-0.75, 0.09, "policy", ha="center", fontsize=10, color=BLUE)
    axes.text(-0.75, -0.42, "noising", ha="center", fontsize=10, color=ORANGE)
    axes.text(1, 0.68, "not discounted", ha="center", fontsize=10, color=GREY)
    axes.text(3.95, 0.68, "discounted by $\\gamma$", ha="center", fontsize=10, color=GREY)
    axes.set_xlim(-1.2, 5.1)
    axes.set_ylim(-0.55, 0.85)
    axes.axis("off")
    return figure


def density(samples: np.ndarray, axes: Axes, color: str, label: str) -> None:
    axes.hist(samples, bins=np.linspace(-1, 1, 81), density=True, histtype="stepfilled", alpha=0.35, color=color)
    axes.hist(samples, bins=np.linspace(-1, 1, 81), density=True, histtype="step", linewidth=1.6, color=color, label=label)


def read_out() -> Figure:
    """The untrained diffusion is a Gaussian whatever the read-out; a trained chain has two modes, which the read-out moves."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(200_000)
    two_modes = np.where(rng.random(noise.size) < 0.5, -1.3, 1.3) + 0.3 * noise
    figure = Figure(figsize=(9, 3), dpi=120, layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for panel, (location, scale) in zip(panels, [(0.0, 1.0), (0.0, 0.45), (0.4, 0.3)], strict=True):
        density(np.tanh(location + scale * noise), panel, ORANGE, "untrained: SAC's Gaussian")
        density(np.tanh(location + scale * two_modes), panel, BLUE, "two modes in $x^0$")
        panel.set_title(f"$m = {location:g}$, $c = {scale:g}$", fontsize=11)
        panel.set_xlabel("action $u = \\tanh(m + c\\,x^0)$")
        panel.set_xlim(-1, 1)
        panel.set_ylim(0, 4)
    panels[0].set_ylabel("density")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    for draw in (augmented_process, read_out):
        draw().savefig(HERE / f"{draw.__name__}.png")
