"""Accuracy by round and against k: the numbers, their intervals, and gaps where there are none."""

import numpy as np
import pytest

from selftrain import plots

ROUNDS = ["base", 1, 2]
METRICS = {"pass@1": [0.2, 0.5, 0.6], "verifier@16": [None, 0.7, 0.8]}
INTERVALS = {"pass@1": ([0.1, 0.4, 0.55], [0.3, 0.55, 0.7])}
KS = [1, 2, 4, 8]
CURVES = {"pass@k": [0.4, 0.5, 0.6, 0.7], "Maj@k": [0.4, 0.4, 0.5, 0.6]}


def _legend(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


def _lines(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def _bars(ax):
    """Return the ends of the vertical error bars, one [rounds, 2] for each series."""
    return [np.array(c.get_segments())[:, :, 1] for c in ax.collections]


# By round -----------------------------------------------------------------------------------------


def test_every_metric_has_its_values_by_round_and_a_gap_where_it_was_not_measured():
    ax = plots.metrics_by_round(ROUNDS, METRICS, ylabel="solved")
    lines = _lines(ax)
    np.testing.assert_array_equal(lines["pass@1"].get_ydata(), METRICS["pass@1"])
    np.testing.assert_array_equal(lines["verifier@16"].get_ydata(), [np.nan, 0.7, 0.8])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["base", "1", "2"]
    assert _legend(ax) == ["pass@1", "verifier@16"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("round", "solved")


def test_intervals_are_drawn_from_end_to_end():
    (bars,) = _bars(plots.metrics_by_round(ROUNDS, METRICS, intervals=INTERVALS))
    np.testing.assert_allclose(bars.T, INTERVALS["pass@1"])


def test_intervals_of_two_metrics_do_not_hide_each_other():
    values = {"a": [0.5], "b": [0.5], "c": [0.5]}
    ax = plots.metrics_by_round([1], values, intervals=dict.fromkeys(values, ([0.4], [0.6])))
    places = {float(c.get_segments()[0][0, 0]) for c in ax.collections}
    assert len(places) == 3
    assert max(map(abs, places)) < 0.2  # and all belong to the round's tick


def test_values_on_the_training_problems_are_dashed_in_the_colour_of_the_metric():
    ax = plots.metrics_by_round(ROUNDS, METRICS, train={"pass@1": [0.2, 0.7, 0.9]})
    lines = _lines(ax)
    train = lines["pass@1, train"]
    np.testing.assert_array_equal(train.get_ydata(), [0.2, 0.7, 0.9])
    assert train.get_color() == lines["pass@1"].get_color() != lines["verifier@16"].get_color()
    assert (train.is_dashed(), lines["pass@1"].is_dashed()) == (True, False)
    assert _legend(ax) == ["pass@1", "pass@1, train", "verifier@16"]


def test_shares_are_written_as_percentages_and_small_changes_stay_small():
    ax = plots.metrics_by_round([0, 1], {"pass@1": [0.4, 0.402]})
    low, high = ax.get_ylim()
    assert high - low == pytest.approx(0.1)
    assert (low + high) / 2 == pytest.approx(0.401)
    write = ax.yaxis.get_major_formatter()
    assert [write(y, 0) for y in (0.1 + 0.2, 0.375, 1.0)] == ["30%", "37.5%", "100%"]


@pytest.mark.parametrize(
    ("rounds", "metrics", "kwargs", "message"),
    [
        ([], {"a": []}, {}, "rounds is empty"),
        ([1], {}, {}, "metrics is empty"),
        ([1], {"a": [0.1, 0.2]}, {}, r"metrics\['a'\] must have one value per round \(1\), got 2"),
        ([1], {"a": [0.1]}, {"train": {"b": [0.1]}}, "train must be one of 'a'; got 'b'"),
        ([1], {"a": [0.1]}, {"train": {"a": []}}, r"train\['a'\] must have one value per round"),
        ([1], {"a": [0.1]}, {"intervals": {"b": ([0], [1])}}, "intervals must be one of 'a'"),
        (
            [1],
            {"a": [0.1]},
            {"intervals": {"a": ([0], [1, 1])}},
            r"intervals\['a'\]\['high'\] must have one value per round",
        ),
        (
            [1, 2],
            {"a": [0.1, 0.5]},
            {"intervals": {"a": ([0.1, 0.05], [0.2, 0.05])}},
            r"intervals\['a'\] must hold the metric's values; entry 1 runs from 0.05 to 0.05",
        ),
    ],
)
def test_rounds_that_cannot_be_drawn_are_refused(rounds, metrics, kwargs, message):
    with pytest.raises(ValueError, match=message):
        plots.metrics_by_round(rounds, metrics, **kwargs)


# Against k ----------------------------------------------------------------------------------------


def test_curves_stand_over_powers_of_two():
    ax = plots.metrics_against_k(KS, CURVES)
    for label, values in CURVES.items():
        np.testing.assert_array_equal(_lines(ax)[label].get_xydata(), np.transpose([KS, values]))
    assert ax.get_xscale() == "log"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "4", "8"]
    assert _legend(ax) == ["pass@k", "Maj@k"]


def test_a_band_covers_the_interval():
    low, high = [0.3, 0.4, 0.5, 0.65], [0.5, 0.6, 0.7, 0.75]
    ax = plots.metrics_against_k(KS, CURVES, intervals={"pass@k": (low, high)})
    (band,) = ax.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices.round(9)}
    assert corners >= {*zip(KS, low, strict=True), *zip(KS, high, strict=True)}


def test_a_thousand_ks_have_few_ticks_and_no_markers():
    ax = plots.metrics_against_k(range(1, 1001), {"pass@k": np.linspace(0.1, 0.9, 1000)})
    assert [t.get_text() for t in ax.get_xticklabels()] == [str(2**i) for i in range(10)]
    assert _lines(ax)["pass@k"].get_marker() in (None, "None")


def test_ks_without_a_power_of_two_between_them_are_ticks_themselves():
    ax = plots.metrics_against_k([5, 6], {"pass@k": [0.1, 0.2]})
    assert [t.get_text() for t in ax.get_xticklabels()] == ["5", "6"]


@pytest.mark.parametrize(
    ("ks", "metrics", "message"),
    [
        ([], {"a": []}, "ks is empty"),
        ([2, 1], {"a": [0.1, 0.2]}, r"ks must rise, from 1 or more, got \[2, 1\]"),
        ([0, 1], {"a": [0.1, 0.2]}, "ks must rise"),
        ([1, 2], {"a": [0.1]}, r"metrics\['a'\] must have one value per k \(2\), got 1"),
    ],
)
def test_ks_that_cannot_be_drawn_are_refused(ks, metrics, message):
    with pytest.raises(ValueError, match=message):
        plots.metrics_against_k(ks, metrics)


def test_both_are_written_as_pictures(tmp_path):
    left, right = plots.panels(2)
    train = {"pass@1": [0.3, 0.6, 0.9]}
    plots.metrics_by_round(ROUNDS, METRICS, intervals=INTERVALS, train=train, ax=left)
    plots.metrics_against_k(KS, CURVES, intervals={"Maj@k": (CURVES["Maj@k"],) * 2}, ax=right)
    plots.save_figure([left, right], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
