import pytest
import torch

from selftrain.decoding.cache import (
    PaddedCache,
    SlotCache,
    sampling_cache,
    slot_obstacle,
)


def test_rolled_back_rows_score_as_fresh_ones(make_llama):
    """Random accepts and rejects, ragged rows: logits equal those of each row alone, uncached."""
    model = make_llama(sharpness=2.0).double()
    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(2, 45, (3, 40), generator=rng)
    lengths = torch.tensor([3, 7, 5])
    cache = SlotCache(model, capacity=48)
    with torch.no_grad():
        cache.prefill([rows[i, :n].tolist() for i, n in enumerate(lengths)])
        for _ in range(8):
            new = int(torch.randint(1, 5, (), generator=rng))
            positions = lengths.unsqueeze(1) + torch.arange(new)
            wrong = torch.randint(2, 45, (3, new), generator=rng)
            keep = torch.randint(0, new + 1, (3, 1), generator=rng)
            fed = torch.where(torch.arange(new) < keep, rows.gather(1, positions), wrong)
            logits = cache.forward(fed, positions, extent=int(lengths.max()) + new)
            for i, n in enumerate(lengths.tolist()):
                whole = torch.cat([rows[i, :n], fed[i]])[None]
                alone = model(input_ids=whole).logits[0, n:]
                torch.testing.assert_close(logits[i], alone, atol=1e-10, rtol=0)
            lengths = lengths + keep.squeeze(1)


def test_a_fork_leaves_its_origin_alone(make_llama):
    model = make_llama().double()
    cache = SlotCache(model, capacity=8)
    position = torch.tensor([[3]])
    with torch.no_grad():
        cache.prefill([[5, 6, 7]])
        before = cache.forward(torch.tensor([[8]]), position, extent=4)
        fork = cache.fork(torch.tensor([0, 0]))
        fork.forward(torch.tensor([[9], [10]]), position.expand(2, 1), extent=4)
        after = cache.forward(torch.tensor([[8]]), position, extent=4)
    torch.testing.assert_close(before, after, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "opt"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_full_attention_models_use_slots(make_model, name, attention):
    model = make_model(name)
    model.set_attn_implementation(attention)
    assert slot_obstacle(model) is None


def test_a_mistral_without_window_uses_slots(make_model):
    assert slot_obstacle(make_model("mistral", sliding_window=None)) is None


@pytest.mark.parametrize("name", ["mistral", "bloom"])
def test_other_attention_models_sample_through_the_padded_cache(make_model, name):
    assert sampling_cache(make_model(name)) is PaddedCache


def test_a_recurrent_model_is_refused_with_the_reason(make_model):
    with pytest.raises(TypeError, match="recurrent"):
        sampling_cache(make_model("mamba"))


def test_a_model_that_ignores_positions_is_found_out(make_llama):
    model = make_llama(sharpness=2.0)
    plain = model.forward

    def forward(*args, position_ids=None, **kwargs):
        return plain(*args, **kwargs)

    model.forward = forward
    assert "ignores" in slot_obstacle(model)
