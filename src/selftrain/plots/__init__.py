"""Matplotlib figures of plain numbers, in one style; each function returns its axes.

Figures are made without pyplot: no backend is chosen, no window opened, no global setting changed.
Pass ``ax`` to draw into axes of your own, and :func:`save_figure` to write a PNG.
"""

from selftrain.plots._style import COLORS, panels, save_figure
from selftrain.plots.accuracy import metrics_against_k, metrics_by_round
from selftrain.plots.bars import grouped_bars, measured_and_predicted
from selftrain.plots.curves import frontier, loss_curves
from selftrain.plots.trace import token_trace
from selftrain.plots.values import learning_curves, readout_bias, sigma_sweep

__all__ = [
    "COLORS",
    "frontier",
    "grouped_bars",
    "learning_curves",
    "loss_curves",
    "measured_and_predicted",
    "metrics_against_k",
    "metrics_by_round",
    "panels",
    "readout_bias",
    "save_figure",
    "sigma_sweep",
    "token_trace",
]
