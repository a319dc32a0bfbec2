"""Figures of value learning: what they draw is what they were given."""

import numpy as np
import pytest

from selftrain import plots


def lines_of(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_learning_curves_draw_means_and_bands():
    curves = {"HL-Gauss": ([0, 10, 20], [0.0, 0.5, 1.0]), "MSE": ([0, 20], [0.1, 0.2])}
    bands = {"HL-Gauss": ([-0.1, 0.4, 0.9], [0.1, 0.6, 1.1])}
    ax = plots.learning_curves(curves, intervals=bands, ylabel="return")
    assert lines_of(ax)["HL-Gauss"].get_ydata().tolist() == [0.0, 0.5, 1.0]
    assert lines_of(ax)["MSE"].get_xdata().tolist() == [0, 20]
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (-0.1, 1.1)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["HL-Gauss", "MSE"]


def test_the_sweep_names_its_ratios_and_draws_the_baseline():
    ax = plots.sigma_sweep([0.25, 0.75], {"51 bins": [0.3, 0.1]}, baseline=("MSE", 0.2))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.25", "0.75"]
    assert set(lines_of(ax)["MSE"].get_ydata()) == {0.2}
    assert lines_of(ax)["51 bins"].get_ydata().tolist() == [0.3, 0.1]


def test_the_bias_is_drawn_without_sign_and_zero_has_a_place():
    ax = plots.readout_bias([0.0, 1.0, 2.0], {"two-hot": [0.0, -0.5, 0.1]})
    drawn = lines_of(ax)["two-hot"].get_ydata()
    np.testing.assert_allclose(drawn, [1e-8, 0.5, 0.1])
    assert ax.get_yscale() == "log"
    assert ax.get_legend() is None


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(ValueError, match="curves is empty"):
        plots.learning_curves({}, ylabel="return")
    with pytest.raises(ValueError, match=r"curves\['a'\] must have one value per step"):
        plots.learning_curves({"a": ([1, 2], [1.0])}, ylabel="return")
    with pytest.raises(ValueError, match="intervals must be one of 'a'"):
        plots.learning_curves({"a": ([1], [1.0])}, intervals={"b": ([1], [1])}, ylabel="return")
    with pytest.raises(ValueError, match=r"intervals\['a'\]"):
        plots.learning_curves({"a": ([1], [1.0])}, intervals={"a": ([], [1])}, ylabel="return")
    with pytest.raises(ValueError, match="ratios must be positive"):
        plots.sigma_sweep([0.0, 1.0], {"a": [1.0, 2.0]})
