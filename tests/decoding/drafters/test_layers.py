import copy

import pytest
import torch

from selftrain.decoding.cache import SlotCache
from selftrain.decoding.drafters.layers import LayerDrafter, first_layers
from selftrain.decoding.drafters.protocol import Rows, Setting
from selftrain.decoding.params import SamplingParams

TOKENS = torch.tensor([[5, 6, 9, 3, 8, 4], [7, 3, 4, 5, 2, 2]])


def rebuilt(model, num_layers):
    """A model of ``num_layers`` built from its configuration, with the same weights."""
    config = copy.deepcopy(model.config)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    config.num_hidden_layers = num_layers
    other = type(model)(config).to(model.dtype).eval()
    other.load_state_dict(model.state_dict(), strict=False)
    return other


@pytest.mark.parametrize("name", ["gpt2", "bloom", "opt", "qwen3", "mistral"])
def test_the_cut_scores_as_a_model_of_that_many_layers(make_model, name):
    model = make_model(name).double()
    before = copy.deepcopy(model.state_dict()), copy.deepcopy(model.config.to_dict())
    with torch.no_grad():
        whole = model(input_ids=TOKENS).logits
        view = first_layers(model, 1)
        got = view(input_ids=TOKENS).logits
        want = rebuilt(model, 1)(input_ids=TOKENS).logits
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
        assert (got - whole).abs().max() > 1e-3
        assert torch.equal(model(input_ids=TOKENS).logits, whole)
        assert torch.equal(first_layers(model, 2)(input_ids=TOKENS).logits, whole)
    assert {p.data_ptr() for p in view.parameters()} <= {p.data_ptr() for p in model.parameters()}
    assert model.config.to_dict() == before[1]
    assert model.state_dict().keys() == before[0].keys()


def test_what_cannot_be_cut_is_refused(make_llama, make_model):
    with pytest.raises(ValueError, match="num_layers"):
        first_layers(make_llama(), 3)
    with pytest.raises(TypeError, match="says its num_hidden_layers"):
        first_layers(torch.nn.Linear(2, 2), 1)
    model = make_llama()
    model.forward = model.forward
    with pytest.raises(TypeError, match="was replaced"):
        first_layers(model, 1)
    model = make_llama()
    model.model.second = torch.nn.ModuleList([torch.nn.Identity()] * 2)
    with pytest.raises(TypeError, match=r"2 of them: model\.layers, model\.second"):
        first_layers(model, 1)
    with pytest.raises(ValueError, match="Keep fewer"):
        LayerDrafter(2).check(make_llama())
    with pytest.raises(TypeError, match="sliding-window"):
        LayerDrafter(1).check(make_model("mistral"))
    with pytest.raises(ValueError, match="num_layers"):
        LayerDrafter(0)
    LayerDrafter(1).check(make_llama())


def test_the_draft_reads_and_writes_the_targets_slots(make_llama):
    """Propose, reject, propose again: greedy tokens are those of the cut model run from scratch,
    and the target's logits over the same slots are those of a fresh forward."""
    target = make_llama(num_hidden_layers=3, sharpness=2.5).double()
    small = rebuilt(target, 2)
    prompts = [[5, 6, 9, 3], [7, 3]]
    cache = SlotCache(target, capacity=16)
    setting = Setting(prompts, 16, SamplingParams(temperature=0), cache, target.config.vocab_size)
    tokens = torch.zeros(2, 16, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    lengths = torch.tensor([4, 2])

    def greedy(row, number):
        text = tokens[row : row + 1, : lengths[row]]
        for _ in range(number):
            best = small(input_ids=text).logits[:, -1:].argmax(-1)
            text = torch.cat([text, best], dim=1)
        return text[0, lengths[row] :].tolist()

    with torch.no_grad():
        cache.prefill([p[:-1] for p in prompts])
        session = LayerDrafter(2).start(setting)
        for keep in ([1, 3], [0, 2], [3, 0]):
            rows = Rows(tokens, lengths, torch.tensor([15, 15]), tuple(lengths.tolist()))
            draft = session.propose(rows, 3, lambda logits, slot: (logits.argmax(-1), None))
            assert draft.logits is None
            assert draft.tokens.tolist() == [greedy(0, 3), greedy(1, 3)]
            fed = torch.cat([tokens.gather(1, lengths.unsqueeze(1) - 1), draft.tokens], 1)
            positions = lengths.unsqueeze(1) - 1 + torch.arange(4)
            logits = cache.forward(fed, positions, extent=int(lengths.max()) + 3)
            for row in range(2):
                text = torch.cat([tokens[row, : lengths[row]], draft.tokens[row]])[None]
                want = target(input_ids=text).logits[0, -4:]
                torch.testing.assert_close(logits[row], want, atol=1e-10, rtol=0)
            kept = torch.tensor(keep).unsqueeze(1)
            corrected = torch.where(torch.arange(3) < kept, draft.tokens, draft.tokens % 40 + 3)
            tokens.scatter_(1, lengths.unsqueeze(1) + torch.arange(3), corrected)
            lengths = torch.minimum(lengths + kept.squeeze(1) + 1, lengths + 3)
        cache.select(torch.tensor([1]))
        session.select(torch.tensor([1]))
        tokens, lengths = tokens[1:], lengths[1:]
        rows = Rows(tokens, lengths, torch.tensor([15]), tuple(lengths.tolist()))
        draft = session.propose(rows, 2, lambda logits, slot: (logits.argmax(-1), None))
        assert draft.tokens.tolist() == [greedy(0, 2)]
