import pytest
import torch

from selftrain.distill.targets import TopKTargets
from selftrain.ops.linear_divergence import Head
from selftrain.training.batch import predicting_steps
from selftrain.training.targets import HiddenTargets, LogitTargets


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_the_predicting_steps_of_rows_are_the_scored_positions_of_their_batch(
    rows, batch, seq2seq_batch, encoder_decoder
):
    batch = seq2seq_batch if encoder_decoder else batch
    width = batch.inputs["decoder_input_ids" if encoder_decoder else "input_ids"].shape[1]
    steps = [predicting_steps(r, is_encoder_decoder=encoder_decoder) for r in batch.token_rows]
    flat = [
        i * (width - batch.first) + step - batch.first
        for i, chosen in enumerate(steps)
        for step in chosen
    ]
    assert flat == batch.positions.tolist()
    assert tuple(map(len, steps)) == batch.counts


def test_rows_stay_with_a_batch_that_moves(rows, batch):
    moved = batch.to(torch.device("meta"))
    assert moved.token_rows == batch.token_rows == tuple(rows)
    assert moved.labels.device.type == "meta"


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: LogitTargets(torch.zeros(2, 3, 4)), ValueError, r"logits must have two axes"),
        (lambda: LogitTargets(torch.zeros(2, 3).long()), TypeError, "logits must be floating"),
        (
            lambda: HiddenTargets(torch.zeros(2, 3), Head(torch.zeros(5, 4))),
            ValueError,
            r"hidden has 3 features, but the head's weight is \[5, 4\]",
        ),
        (
            lambda: TopKTargets(torch.zeros(2, 3), torch.zeros(2, 3)),
            TypeError,
            "token_ids must be integers",
        ),
        (
            lambda: TopKTargets(torch.zeros(2, 3).long(), torch.zeros(2, 4)),
            ValueError,
            "each id needs one log-probability",
        ),
        (
            lambda: TopKTargets(torch.zeros(2, 0).long(), torch.zeros(2, 0)),
            ValueError,
            "token_ids has no column",
        ),
    ],
)
def test_targets_of_the_wrong_form_are_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()
