"""Every cache against forwards without one, in float64."""

import pytest
import torch

from selftrain.decoding.cache import HoleyCache, PaddedCache, Seq2SeqCache, SlotCache

CAUSAL = [
    ("gpt2", "sdpa"),
    ("opt", "sdpa"),
    ("llama", "sdpa"),
    ("qwen3", "sdpa"),
    ("gpt_neox", "sdpa"),
    ("falcon", "sdpa"),
    ("mistral", "sdpa"),
    ("phi3", "sdpa"),
    ("gemma3", "sdpa"),
    ("gemma3n", "sdpa"),
    ("gpt2", "eager"),
    ("gpt_neox", "eager"),
    ("mistral", "eager"),
    ("gemma2", "eager"),
    ("gemma3", "eager"),
]
FULL = [case for case in CAUSAL if case[0] in ("gpt2", "opt", "llama", "gpt_neox")]
SEQ2SEQ = [("t5", a) for a in ("sdpa", "eager")] + [("t5v1.1", "sdpa"), ("bart", "sdpa")]
SEQ2SEQ += [("bart", "eager"), ("marian", "sdpa"), ("t5gemma", "eager")]
T5_1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


class Case:
    """A model, a cache over it, and what the cache must agree with."""

    def __init__(self, make_model, name, attention, cache_type, num_rows=3):
        overrides = T5_1_1 if name == "t5v1.1" else {}
        name = {"t5v1.1": "t5"}.get(name, name.replace("_", ""))
        self.model = make_model(name, sharpness=2.0, **overrides).double()
        self.model.set_attn_implementation(attention)
        # Most eager attention of transformers computes its softmax in float32, and ALiBi too.
        self.atol = 2e-6 if attention == "eager" or name == "bloom" else 1e-10
        self.cache_type = cache_type
        rng = torch.Generator().manual_seed(1)
        self.rows = torch.randint(2, 64, (num_rows, 40), generator=rng)
        self.source = {}
        if cache_type is Seq2SeqCache:
            mask = torch.ones(num_rows, 6, dtype=torch.long)
            mask[-1, :2] = 0
            ids = torch.randint(2, 64, (num_rows, 6), generator=rng)
            self.source = {"input_ids": ids, "attention_mask": mask}

    def cache(self):
        source = {f"encoder_{k}": v for k, v in self.source.items()}
        return self.cache_type(self.model, capacity=48, **source)

    def plain(self, row, tokens):
        """Logits of one row alone, without a cache."""
        if not self.source:
            return self.model(input_ids=tokens[None], use_cache=False).logits[0]
        source = {k: v[row : row + 1] for k, v in self.source.items()}
        return self.model(**source, decoder_input_ids=tokens[None], use_cache=False).logits[0]

    def check(self, got, row, tokens):
        want = self.plain(row, tokens)[-len(got) :]
        torch.testing.assert_close(got, want, atol=self.atol, rtol=0)


@pytest.fixture
def make_case(make_model):
    return lambda *args, **kwargs: Case(make_model, *args, **kwargs)


def walk(case, cache, rounds):
    """Feed drafts of which a random part is right and stays; return the rows' lengths."""
    rng = torch.Generator().manual_seed(0)
    rows, lengths = case.rows, torch.tensor([1, 7, 3])
    cache.prefill([rows[i, :n].tolist() for i, n in enumerate(lengths)])
    for _ in range(rounds):
        new = int(torch.randint(1, 5, (), generator=rng))
        positions = lengths.unsqueeze(1) + torch.arange(new)
        wrong = torch.randint(2, 64, (3, new), generator=rng)
        keep = torch.randint(0, new + 1, (3, 1), generator=rng)
        fed = torch.where(torch.arange(new) < keep, rows.gather(1, positions), wrong)
        logits = cache.forward(fed, positions, extent=int(lengths.max()) + new)
        for i, n in enumerate(lengths.tolist()):
            case.check(logits[i], i, torch.cat([rows[i, :n], fed[i]]))
        lengths = lengths + keep.squeeze(1)
    return lengths


CASES = [
    *[(*case, SlotCache) for case in CAUSAL],
    *[(*case, HoleyCache) for case in [*FULL, ("bloom", "eager")]],
    *[(*case, Seq2SeqCache) for case in SEQ2SEQ],
]


@pytest.mark.parametrize(("name", "attention", "cache_type"), CASES)
@torch.no_grad()
def test_rolled_back_rows_score_as_each_alone_without_a_cache(
    make_case, name, attention, cache_type
):
    case = make_case(name, attention, cache_type)
    walk(case, case.cache(), rounds=8)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
@torch.no_grad()
def test_keys_and_values_of_what_stood_are_those_of_a_fresh_prefill(make_case, name):
    case = make_case(name, "sdpa", SlotCache)
    cache = case.cache()
    lengths = walk(case, cache, rounds=8)
    for row, n in enumerate(lengths.tolist()):
        fresh = case.cache()
        fresh.prefill([case.rows[row, :n].tolist()])
        for layer, other in zip(cache._cache.layers, fresh._cache.layers, strict=True):
            for got, want in ((layer.keys, other.keys), (layer.values, other.values)):
                torch.testing.assert_close(got[row, :, :n], want[0, :, :n], atol=1e-10, rtol=0)


@pytest.mark.parametrize(("name", "attention", "cache_type"), CASES)
@pytest.mark.parametrize("new", [1, 3])
@torch.no_grad()
def test_a_single_row_needs_no_prefill_and_crosses_its_window(
    make_case, name, attention, cache_type, new
):
    """Windows are of 4 tokens; lengths below, at and above them are all met."""
    case = make_case(name, attention, cache_type, num_rows=1)
    cache = case.cache()
    for start in range(0, 12, new):
        positions = torch.arange(start, start + new)[None]
        logits = cache.forward(case.rows[:, start : start + new], positions, extent=start + new)
        case.check(logits[0], 0, case.rows[0, : start + new])


@pytest.mark.parametrize(
    ("name", "attention", "cache_type"),
    [
        ("mistral", "sdpa", SlotCache),
        ("llama", "eager", SlotCache),
        ("bloom", "eager", HoleyCache),
        ("t5", "sdpa", Seq2SeqCache),
        ("bart", "eager", Seq2SeqCache),
    ],
)
@torch.no_grad()
def test_the_last_two_tokens_can_be_fed_again_even_where_a_row_has_one(
    make_case, name, attention, cache_type
):
    """How a draft begins its round: a row of one token feeds it twice, to the same place."""
    case = make_case(name, attention, cache_type)
    lengths, cache = torch.tensor([1, 6, 2]), case.cache()
    cache.prefill([case.rows[i, : max(0, n - 2)].tolist() for i, n in enumerate(lengths.tolist())])
    for _ in range(3):
        positions = torch.stack([(lengths - 2).clamp(min=0), lengths - 1], dim=1)
        tokens = case.rows.gather(1, positions)
        logits = cache.forward(tokens, positions, extent=int(lengths.max()), last_only=True)
        for i, n in enumerate(lengths.tolist()):
            case.check(logits[i], i, case.rows[i, :n])
        drafted = case.rows.gather(1, lengths.unsqueeze(1)) ^ 1  # rejected in the next round
        logits = cache.forward(drafted, lengths.unsqueeze(1), extent=int(lengths.max()) + 1)
        for i, n in enumerate(lengths.tolist()):
            case.check(logits[i], i, torch.cat([case.rows[i, :n], drafted[i]]))


@pytest.mark.parametrize(
    ("name", "cache_type"),
    [("gemma3", SlotCache), ("llama", HoleyCache), ("t5", Seq2SeqCache), ("bart", Seq2SeqCache)],
)
@torch.no_grad()
def test_rows_are_selected_repeated_and_forked_with_all_they_depend_on(make_case, name, cache_type):
    case = make_case(name, "sdpa", cache_type)
    cache = case.cache()
    lengths = walk(case, cache, rounds=2)
    position = lengths.unsqueeze(1)
    order = torch.tensor([2, 0, 2])
    fork = cache.fork(order)
    tokens = case.rows.gather(1, position)
    other = fork.forward(tokens[order] ^ 1, position[order], extent=int(lengths.max()) + 1)
    logits = cache.forward(tokens, position, extent=int(lengths.max()) + 1)
    for place, row in enumerate(order.tolist()):
        changed = torch.cat([case.rows[row, : lengths[row]], tokens[row] ^ 1])
        case.check(other[place], row, changed)
        case.check(logits[place], place, case.rows[place, : lengths[place] + 1])
    cache.select(torch.tensor([1]))
    again = cache.forward(tokens[1:2], position[1:2], extent=int(lengths[1]) + 1)
    case.check(again[0], 1, case.rows[1, : lengths[1] + 1])


@torch.no_grad()
def test_rejected_tokens_do_not_pile_up(make_case):
    """30 rejected drafts of 4 tokens: holes are squeezed out, and what stood still counts."""
    case = make_case("llama", "sdpa", HoleyCache)
    lengths, cache = torch.tensor([5, 9, 2]), case.cache()
    cache.prefill([case.rows[i, :n].tolist() for i, n in enumerate(lengths)])
    positions = lengths.unsqueeze(1) + torch.arange(4)
    for _ in range(30):
        cache.forward(case.rows.gather(1, positions) ^ 1, positions, extent=13)
    assert cache._cache.get_seq_length() <= 2 * 13 + 32
    logits = cache.forward(case.rows.gather(1, positions), positions, extent=13)
    for i, n in enumerate(lengths.tolist()):
        case.check(logits[i], i, case.rows[i, : n + 4])


@torch.no_grad()
def test_the_encoder_runs_once_and_its_keys_never_change(make_case):
    case = make_case("t5", "sdpa", Seq2SeqCache)
    calls = []
    hook = case.model.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    cache = case.cache()
    cache.prefill([[0, 5], [0], [0]])
    before = [layer.keys for layer in cache._decoder._cross.layers]
    cache.forward(case.rows[:, 1:3], torch.tensor([[2, 3], [1, 2], [1, 2]]), extent=4)
    hook.remove()
    assert calls == [1]
    assert all(b is a.keys for b, a in zip(before, cache._decoder._cross.layers, strict=True))


@torch.no_grad()
def test_the_model_keeps_its_position_tables(make_case):
    for name in ("t5", "bart"):
        case = make_case(name, "sdpa", Seq2SeqCache)
        before = {k: v.clone() for k, v in case.model.state_dict().items()}
        walk(case, case.cache(), rounds=1)
        assert all(torch.equal(v, before[k]) for k, v in case.model.state_dict().items())


@pytest.mark.parametrize("cache_type", [SlotCache, HoleyCache, PaddedCache])
def test_empty_prompts_store_nothing(make_llama, cache_type):
    model = make_llama().double()
    cache = cache_type(model, capacity=4)
    tokens, start = torch.tensor([[5], [6]]), torch.zeros(2, 1, dtype=torch.long)
    with torch.no_grad():
        cache.prefill([[], []])
        cache.select(torch.tensor([1, 0]))
        got = cache.forward(tokens, start, extent=1)
        want = model(input_ids=tokens).logits
    torch.testing.assert_close(got, want, atol=1e-10, rtol=0)


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


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[5, 6]], [[1, 1, 1]], "shape"),
        ([5, 6], None, "batch, source"),
        ([[5, 6], [5, 6]], [[1, 1], [0, 0]], r"rows \[1\]"),
    ],
)
def test_bad_encoder_inputs_are_named(make_model, ids, mask, message):
    mask = None if mask is None else torch.tensor(mask)
    with pytest.raises(ValueError, match=message):
        Seq2SeqCache(
            make_model("t5"),
            capacity=4,
            encoder_input_ids=torch.tensor(ids),
            encoder_attention_mask=mask,
        )
