"""Plots: what is drawn is what was given, without touching matplotlib's global state."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.image import imread

from selftrain import plots

DRAFTS = ["undistilled", "supervised", "on-policy"]


def _texts(ax):
    return [t.get_text() for t in ax.texts]


def _legend(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


def _boxes(ax):
    return [p for p in ax.patches if (p.get_gid() or "").startswith("token-")]


# Figures ------------------------------------------------------------------------------------------


def test_a_saved_figure_has_the_pixels_asked_for_and_no_leftovers(tmp_path):
    axes = plots.panels(2, width=3, height=2)
    plots.save_figure(axes, tmp_path / "new" / "a.png")
    assert imread(tmp_path / "new" / "a.png").shape[:2] == (400, 1200)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_drawing_neither_loads_pyplot_nor_changes_settings(tmp_path):
    code = f"""
import sys
from selftrain import plots
assert "matplotlib" not in sys.modules
import matplotlib
names = [name for name in matplotlib.rcParams if name != "backend"]  # reading it loads pyplot
before = [matplotlib.rcParams[name] for name in names]
ax = plots.loss_curves({{"a": ([1, 2], [3.0, 2.0])}}, ylabel="loss")
plots.save_figure(ax, {str(tmp_path / "a.png")!r})
assert "matplotlib.pyplot" not in sys.modules
assert "torch" not in sys.modules
assert [matplotlib.rcParams[name] for name in names] == before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_given_axes_are_drawn_into():
    left, right = plots.panels(2)
    assert plots.grouped_bars(["a"], ["s"], [[1.0]], ylabel="y", ax=right) is right
    assert not left.patches


@pytest.mark.parametrize("kwargs", [{"num": 0}, {"width": 0}, {"height": -1.0}])
def test_panels_have_a_size(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        plots.panels(**kwargs)


# Curves -------------------------------------------------------------------------------------------


def test_each_curve_is_drawn_as_given_and_named():
    ax = plots.loss_curves({"a": ([1, 2], [3.0, 2.0]), "b": ([1], [5.0])}, ylabel="nats")
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[1, 3], [2, 2]], [[1, 5]]]
    assert _legend(ax) == ["a", "b"]
    assert ax.get_ylabel() == "nats"


def test_one_curve_needs_no_legend():
    assert plots.loss_curves({"a": ([1], [5.0])}, ylabel="nats").get_legend() is None


def test_smoothing_keeps_the_raw_line_and_leaves_a_straight_one_straight():
    steps, values = np.arange(50), 3.0 - 0.1 * np.arange(50)
    raw, smooth = plots.loss_curves({"a": (steps, values)}, ylabel="y", smoothing=0.8).lines
    np.testing.assert_array_equal(raw.get_ydata(), values)
    np.testing.assert_allclose(smooth.get_ydata(), values, atol=1e-9)


def test_smoothing_removes_most_of_the_noise():
    noise = np.random.default_rng(0).normal(size=400)
    _, smooth = plots.loss_curves({"a": (range(400), noise)}, ylabel="y", smoothing=0.9).lines
    assert np.std(smooth.get_ydata()) < 0.4


def test_smoothing_leaves_gaps_and_lonely_values_alone():
    values = [1.0] + [float("nan")] * 20 + [3.0, 3.0]
    _, smooth = plots.loss_curves({"a": (range(23), values)}, ylabel="y", smoothing=0.1).lines
    np.testing.assert_allclose(smooth.get_ydata(), values, atol=1e-9)


@pytest.mark.parametrize(
    ("curves", "smoothing", "message"),
    [
        ({}, 0, "curves is empty"),
        ({"a": ([1], [1.0, 2.0])}, 0, r"curves\['a'\] must have one value per step \(1\), got 2"),
        ({"a": ([1], [1.0])}, 1.0, "smoothing"),
    ],
)
def test_curves_that_cannot_be_drawn_are_refused(curves, smoothing, message):
    with pytest.raises(ValueError, match=message):
        plots.loss_curves(curves, ylabel="y", smoothing=smoothing)


# Frontiers ----------------------------------------------------------------------------------------


def test_a_frontier_shows_every_setting_the_baselines_dashed_and_where_all_start():
    curves = {"a": ([0.1, 0.2], [3.0, 4.0]), "plain": ([0.1], [2.0])}
    ax = plots.frontier(
        curves, xlabel="cost", ylabel="gain", baselines=["plain"], start=("lossless", 0.0, 2.5)
    )
    drawn = [line.get_xydata().tolist() for line in ax.lines]
    assert drawn == [[[0.1, 3], [0.2, 4]], [[0.1, 2]], [[0, 2.5]]]
    assert [line.is_dashed() for line in ax.lines[:2]] == [False, True]
    assert _legend(ax) == ["a", "plain", "lossless"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("cost", "gain")


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "curves is empty"),
        ({"a": ([1], [1.0, 2.0])}, r"curves\['a'\] must have one value per cost \(1\), got 2"),
        ({"a": ([1], [1.0])}, "baselines must be one of 'a'; got 'plain'"),
    ],
)
def test_a_frontier_that_cannot_be_drawn_is_refused(curves, message):
    with pytest.raises(ValueError, match=message):
        plots.frontier(curves, xlabel="x", ylabel="y", baselines=["plain"])


# Bars ---------------------------------------------------------------------------------------------


def test_bars_have_their_heights_values_errors_and_reference():
    values = [[0.4, 0.5, 0.6], [1.2, 12.34, 1234.5]]
    ax = plots.grouped_bars(
        DRAFTS, ["greedy", "T = 1"], values, errors=values, ylabel="y", reference=("plain", 1.0)
    )
    assert [bar.get_height() for bar in ax.patches] == values[0] + values[1]
    assert _texts(ax) == ["0.40", "0.50", "0.60", "1.20", "12.3", "1,234"]
    assert [t.get_text() for t in ax.get_xticklabels()] == DRAFTS
    assert _legend(ax) == ["greedy", "T = 1", "plain"]
    assert len(ax.collections) == 2  # one set of error bars a series


def test_bars_of_a_group_stand_side_by_side():
    ax = plots.grouped_bars(DRAFTS, ["a", "b", "c"], [[1.0] * 3] * 3, ylabel="y")
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches)
    assert all(right < left for (_, right), (left, _) in pairwise(edges))


def test_predictions_stand_beside_the_measurements():
    ax = plots.measured_and_predicted(
        DRAFTS, [300, 400, 420], [310, None, 450], ylabel="tokens/s", reference=("plain", 250)
    )
    assert [bar.get_height() for bar in ax.patches] == [300, 400, 420]
    assert ax.lines[0].get_ydata().tolist() == [310, 450]
    assert _texts(ax) == ["300", "400", "420", "310", "450"]
    assert _legend(ax) == ["measured", "predicted by the cost model", "plain"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([], ["s"], [[]]), "groups is empty"),
        ((["a"], [], []), "series is empty"),
        ((["a"], ["s"], [[1.0], [2.0]]), r"values must have one value per series \(1\), got 2"),
        ((["a"], ["s"], [[1.0, 2.0]]), r"values of 's' must have one value per group \(1\), got 2"),
    ],
)
def test_bars_of_another_shape_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        plots.grouped_bars(*args, ylabel="y")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([], [], [1.0]), "labels is empty"),
        ((["a"], [1.0], [None]), "predicted has no number"),
        ((["a"], [1.0, 2.0], [1.0]), r"measured must have one value per label \(1\), got 2"),
    ],
)
def test_predictions_of_another_shape_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        plots.measured_and_predicted(*args, ylabel="y")


# Traces -------------------------------------------------------------------------------------------


def test_a_trace_has_a_box_for_each_token_and_one_for_each_status_in_the_legend():
    tokens, status = ["a", " b", "c", "d"], ["prompt", "accepted", "rejected", "target"]
    gids = [box.get_gid() for box in _boxes(plots.token_trace(tokens, status))]
    assert gids == [f"token-{s}" for s in status] * 2


def test_a_line_end_breaks_the_line_unless_it_was_rejected():
    def lines(status):
        boxes = _boxes(plots.token_trace(["a", "\n", "b"], ["accepted", status, "accepted"]))
        return len({box.get_y() for box in boxes[-3:]})

    assert (lines("accepted"), lines("rejected")) == (2, 1)


def test_boxes_stay_inside_the_columns_and_apart():
    rng = np.random.default_rng(0)
    tokens = ["x" * n for n in rng.integers(1, 60, 100)]
    boxes = _boxes(plots.token_trace(tokens, ["accepted"] * 100, columns=40))[1:]
    assert max(box.get_x() + box.get_width() for box in boxes) <= 40.5
    for one, other in pairwise(boxes):
        if one.get_y() == other.get_y():
            assert one.get_x() + one.get_width() < other.get_x()
        else:
            assert other.get_y() < one.get_y() - one.get_height()


def test_rejected_tokens_are_struck_through_and_target_tokens_underlined():
    ax = plots.token_trace(["a", "b", "c"], ["accepted", "rejected", "target"])
    assert len(ax.lines) == 2 * 2  # both in the text and in the legend


@pytest.mark.parametrize("token", ["$x$", "\\$", "漢字🎉", "\x00\ufffd", "", "\t\r\n\n", "e\u0301"])
def test_any_token_can_be_drawn(token, tmp_path):
    plots.save_figure(plots.token_trace([token], ["accepted"]), tmp_path / "a.png")


def test_a_long_trace_is_higher_not_smaller(tmp_path):
    sizes = []
    for num in (60, 600):
        ax = plots.token_trace(["token "] * num, ["accepted"] * num)
        plots.save_figure(ax, tmp_path / "a.png")
        sizes.append(imread(tmp_path / "a.png").shape)
    assert sizes[0][1] == sizes[1][1]
    assert sizes[1][0] > 4 * sizes[0][0]


@pytest.mark.parametrize(
    ("tokens", "status", "message"),
    [
        ([], [], "tokens is empty"),
        (["a"], [], r"status must have one entry for each token, got 0 for 1\."),
        (["a"], ["new"], "status must be one of 'prompt', 'accepted', 'rejected', 'target'"),
    ],
)
def test_a_trace_that_does_not_fit_is_refused(tokens, status, message):
    with pytest.raises(ValueError, match=message):
        plots.token_trace(tokens, status)
