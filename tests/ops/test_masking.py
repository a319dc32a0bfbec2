import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from selftrain.ops import completion_mask, masked_mean, pad_sequences

PROMPT_AND_COMPLETION = st.tuples(
    st.lists(st.integers(0, 5), max_size=6), st.lists(st.integers(0, 5), max_size=6)
)


@given(
    sequences=st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=4),
    side=st.sampled_from(["left", "right"]),
)
def test_unpadding_by_the_mask_gives_the_lists_back(sequences, side):
    padded = pad_sequences(sequences, side=side, pad_id=3)
    back = [ids[mask].tolist() for ids, mask in zip(padded.token_ids, padded.mask, strict=True)]
    assert back == sequences


def test_padding_is_on_the_side_asked_for():
    assert pad_sequences([[1, 2], [3]], side="left", pad_id=9).token_ids.tolist() == [
        [1, 2],
        [9, 3],
    ]
    assert pad_sequences([[1, 2], [3]], pad_id=9).token_ids.tolist() == [[1, 2], [3, 9]]


@pytest.mark.usefixtures("without_shape_checks")
def test_an_unknown_side_is_an_error():
    with pytest.raises(ValueError, match="side must be one of 'left', 'right'"):
        pad_sequences([[1]], side="middle")


@given(
    rows=st.lists(PROMPT_AND_COMPLETION, min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    eos=st.sets(st.integers(0, 5), max_size=2),
)
def test_mask_selects_the_completion_through_its_first_end(rows, side, eos):
    padded = pad_sequences([p + c for p, c in rows], side=side, pad_id=1)
    lengths = torch.tensor([len(p) for p, _ in rows])
    mask = completion_mask(padded.token_ids, padded.mask, prompt_lengths=lengths, eos_token_ids=eos)
    for ids, chosen, (_, completion) in zip(padded.token_ids, mask, rows, strict=True):
        ends = [i for i, token in enumerate(completion) if token in eos]
        assert ids[chosen].tolist() == completion[: ends[0] + 1 if ends else None]


def test_masked_values_have_no_effect_even_as_nan():
    values = torch.tensor([1.0, float("nan"), 3.0], requires_grad=True)
    mean = masked_mean(values, torch.tensor([True, False, True]))
    mean.backward()
    assert mean.item() == 2.0
    assert values.grad.tolist() == [0.5, 0.0, 0.5]


def test_mean_over_nothing_is_zero_with_zero_gradient():
    values = torch.ones(3, requires_grad=True)
    mean = masked_mean(values, torch.zeros(3, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0.0
    assert values.grad.tolist() == [0.0, 0.0, 0.0]
