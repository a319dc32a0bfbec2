import json

import pytest

from selftrain.bench.costs import ForwardCosts
from selftrain.bench.decoders import (
    PEER_ASSISTED,
    PEER_PLAIN,
    PLAIN,
    SPECULATIVE,
    Decoded,
)
from selftrain.bench.pages import case_label, case_table, model_cells, speed_cells, summary_cells
from selftrain.bench.rows import is_speculative, prediction, speed_row
from selftrain.bench.timing import Timed
from selftrain.decoding.outcome import SpeculativeStats

STATS = SpeculativeStats(
    num_target_calls=5, num_drafted=20, num_tested=16, num_accepted=12, total_overlap=12.8
)
COSTS = ForwardCosts(draft_step=10.0, target_one=80.0, target_block=60.0, num_draft_tokens=4)


def runs_of(name, seconds, calls, tokens=20, stats=None):
    decoded = Decoded([list(range(tokens))], calls, stats)
    return {name: [Timed(s, decoded, 2**20) for s in seconds]}


RUNS = {
    **runs_of(SPECULATIVE, [1.0, 2.0, 4.0], 5, stats=STATS),
    **runs_of(PLAIN, [2.0, 5.0, 6.0], 20),
    **runs_of(PEER_PLAIN, [2.0, 4.0, 8.0], 20),
    **runs_of(PEER_ASSISTED, [1.5, 3.0, 6.0], 5),
}
FIRST = {SPECULATIVE: [0.05, 1.05, 3.05]}


def full_row():
    row = speed_row(RUNS, [COSTS] * 3, FIRST)
    row["costs"] = {"draft_step": 10.0, "target_one": 80.0, "target_block": 60.0, "verify": 10.0}
    row["prediction"] = prediction(row, COSTS)
    return row


def test_a_ratio_is_the_median_of_the_ratios_of_rounds_not_the_ratio_of_medians():
    over = speed_row(RUNS)["methods"][SPECULATIVE]["over"]
    assert over[PLAIN] == pytest.approx([1.75, 2.0, 2.25])  # of 2, 2.5 and 1.5
    assert over[PEER_PLAIN] == pytest.approx([2.0, 2.0, 2.0])
    assert over[PEER_ASSISTED] == pytest.approx([1.5, 1.5, 1.5])


def test_speed_and_block_efficiency():
    mine = speed_row(RUNS)["methods"][SPECULATIVE]
    assert mine["tokens_per_second"] == pytest.approx([7.5, 10.0, 15.0])
    assert mine["block_efficiency"] == pytest.approx(4.0)
    assert mine["peak_bytes"] == 2**20
    assert "share_of_ceiling" not in mine


def test_the_share_of_the_ceiling_is_taken_round_by_round():
    row = speed_row(RUNS, [COSTS] * 3, FIRST)
    # Four tokens a call in 10 * 4 + 60 milliseconds: 40 tokens a second.
    mine = row["methods"][SPECULATIVE]
    assert mine["share_of_ceiling"] == pytest.approx([7.5 / 40, 10 / 40, 15 / 40])
    # 19 tokens in what is left of each round, 0.95 seconds.
    assert mine["share_after_first_token"] == pytest.approx([0.5, 0.5, 0.5])
    assert "share_of_ceiling" not in row["methods"][PLAIN]


def test_the_acceptances_are_those_of_all_rounds():
    acceptance = speed_row(RUNS)["acceptance"]
    assert acceptance == pytest.approx(
        {"analytic_acceptance": 0.8, "acceptance_rate": 0.75, "accepted_fraction": 0.6}
    )


def test_a_planner_that_never_speculates_has_no_acceptance():
    none = SpeculativeStats(
        num_target_calls=20, num_drafted=0, num_tested=0, num_accepted=0, total_overlap=0.0
    )
    runs = {**RUNS, **runs_of(SPECULATIVE, [1.0, 2.0, 4.0], 20, stats=none)}
    assert set(speed_row(runs)["acceptance"].values()) == {None}


def test_rounds_of_equal_text_are_counted():
    other = runs_of(PLAIN, [2.0, 4.0, 8.0], 20)[PLAIN]
    other[1] = Timed(4.0, Decoded([[7] * 20], 20), None)
    assert speed_row(RUNS)["num_rounds_as_plain"] == 3
    assert speed_row({**RUNS, PLAIN: other})["num_rounds_as_plain"] == 2


def test_the_prediction_is_the_cost_models():
    found = full_row()["prediction"]
    assert found["ceiling_tokens_per_second"] == pytest.approx(40.0)
    assert found["speedup"] == pytest.approx(4 * 80 / 100)
    assert found["speedup_with_verify"] == pytest.approx(4 * 80 / 110)
    assert found["measured_speedup"] == pytest.approx(2.0)


def test_a_row_survives_json_unchanged():
    row = full_row()
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_a_leaner_forward_is_speculative_and_plain_is_not():
    names = [SPECULATIVE, f"{SPECULATIVE}, packed", PLAIN, f"{PLAIN}, packed", PEER_ASSISTED]
    assert [is_speculative(name) for name in names] == [True, True, False, False, False]


def test_cells_show_what_was_measured():
    row = full_row()
    speed, model, summary = speed_cells(row), model_cells(row), summary_cells(row)
    assert speed["tok/s"] == "10 (8 to 15)"
    assert speed["x assisted"] == "1.50"
    assert model["block efficiency (peer)"] == "4.00 (4.00)"
    assert model["T_d / T_1 / T_{g+1} ms"] == "10.00 / 80.00 / 60.00"
    assert model["share of ceiling"] == "25%"
    assert model["speed-up predicted (with T_verify)"] == "3.20 (2.91)"
    assert summary["x plain"] == "2.00"


def test_what_was_not_measured_is_a_dash():
    row = speed_row({name: RUNS[name] for name in (SPECULATIVE, PLAIN)})
    assert speed_cells(row)["assisted"] == "–"
    assert model_cells(row)["ceiling tok/s"] == "–"
    assert summary_cells(row)["x assisted"] == "–"


def test_a_table_fills_what_a_line_lacks():
    text = case_table([["a"], ["b"]], ["case"], [{"x": "1"}, {"y": "2"}])
    assert text.splitlines()[2:] == ["| a | 1 | – |", "| b | – | 2 |"]


def test_a_label_names_what_differs_from_the_usual():
    case = {"dtype": "bfloat16", "temperature": 0.5, "num_draft_tokens": 4, "batch_size": 8}
    assert case_label({**case, "verifier": "block"}) == "bf16, T=0.5, g=4, batch 8, block"
    plain = {**case, "dtype": "float32", "temperature": 0.0, "batch_size": 1, "verifier": "token"}
    assert case_label(plain) == "fp32, greedy, g=4"
