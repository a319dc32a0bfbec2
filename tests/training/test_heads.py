"""Hidden states and head, of every architecture, against the model's own logits."""

import copy

import pytest
import torch
import transformers
from torch import nn

from selftrain.training.batch import TokenRow, collate, scored_logits, takes_logits_to_keep
from selftrain.training.heads import find_head, scored_hidden
from selftrain.training.targets import dense_logits

ROWS = [
    TokenRow(prompt_ids=(3, 4, 5), completion_ids=(6, 7, 1)),
    TokenRow(prompt_ids=(8,), completion_ids=(9, 10, 11, 12)),
]
DECODERS = "falcon gemma2 gemma3 gemma3n gpt2 gptneo gptneox jamba llama mamba mistral mixtral"
DECODERS += " mpt opt"
ENCODER_DECODERS = "bart marian t5 t5gemma umt5"
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def seen(model):
    slices = takes_logits_to_keep(model)
    start = 0 if model.config.is_encoder_decoder else None
    return collate(ROWS, decoder_start_id=start), slices


def difference(model):
    """Return the largest difference of logits from hidden states, and the logits' own size."""
    batch, slices = seen(model)
    access = find_head(model, slices_logits=slices)
    assert access is not None
    with torch.no_grad():
        ours = dense_logits(scored_hidden(model, batch, access))
        theirs = scored_logits(model, batch, slices_logits=slices)
    return float((ours - theirs).abs().max()), float(theirs.abs().max())


@pytest.mark.parametrize("name", [*DECODERS.split(), *ENCODER_DECODERS.split()])
def test_hidden_states_and_head_give_the_models_own_logits(make_model, name):
    model = make_model(name, sharpness=3.0)
    error, size = difference(model)
    assert error <= 1e-5 * max(size, 1.0)


@pytest.mark.parametrize(
    ("kind", "options", "scale", "softcap"),
    [
        ("Cohere", {"logit_scale": 0.0625}, 0.0625, None),
        ("Granite", {"logits_scaling": 7.0}, 1 / 7, None),
        ("Gemma2", {"final_logit_softcapping": 30.0, "head_dim": 16}, 1.0, 30.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_follows_the_head_is_read_off(kind, options, scale, softcap, dtype):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL, **options)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype).eval()
    access = find_head(model, slices_logits=True)
    rel = 1e-5 if dtype == torch.float32 else 2e-3
    assert access.scale == pytest.approx(scale, rel=rel)
    assert access.softcap == (softcap and pytest.approx(softcap, rel=rel))
    if dtype == torch.float32:
        error, size = difference(model)
        assert error <= 1e-5 * max(size, 1.0)


@pytest.mark.parametrize("tied", [True, False])
def test_the_scaling_of_tied_t5_is_part_of_its_hidden_states(make_model, tied):
    model = make_model("t5", tie_word_embeddings=tied, sharpness=3.0)
    error, size = difference(model)
    assert error <= 1e-5 * size


def test_gradients_through_hidden_states_are_those_of_the_logits(make_model):
    model = make_model("gemma2")
    batch, slices = seen(model)
    access = find_head(model, slices_logits=slices)
    weights = torch.randn(len(batch.labels), 64, generator=torch.Generator().manual_seed(0))

    def gradients(logits):
        model.zero_grad()
        (logits * weights).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    ours = gradients(dense_logits(scored_hidden(model, batch, access)))
    theirs = gradients(scored_logits(model, batch, slices_logits=slices))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_head_that_is_more_than_a_linear_layer_is_not_taken(make_llama):
    class Louder(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = copy.deepcopy(make_llama(tie_word_embeddings=False))
    model.lm_head = Louder(32, model.config.vocab_size)
    assert find_head(model, slices_logits=True) is None


def test_logits_that_get_a_bias_behind_the_head_are_not_taken_for_its_output(make_model):
    model = make_model("bart")
    with torch.no_grad():
        model.final_logits_bias.uniform_(-1, 1)
    assert find_head(model, slices_logits=False) is None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_on_the_head_is_not_overlooked(make_llama):
    import peft

    model = copy.deepcopy(make_llama(tie_word_embeddings=False))
    for targets, found in ((["q_proj"], True), (["lm_head"], False)):
        adapted = peft.get_peft_model(
            copy.deepcopy(model), peft.LoraConfig(target_modules=targets, task_type="CAUSAL_LM")
        )
        assert (find_head(adapted, slices_logits=True) is not None) == found


def test_asking_leaves_no_trace(make_llama):
    model = make_llama()
    before = dict(model.lm_head.__dict__)
    model.train()
    assert find_head(model, slices_logits=True) is not None
    assert model.training
    assert model.lm_head.__dict__.keys() == before.keys()
    assert "forward" not in model.lm_head.__dict__
    model.eval()


def test_a_failing_forward_pass_gives_the_head_back(make_llama):
    model = make_llama()
    batch, _ = seen(model)
    access = find_head(model, slices_logits=True)
    batch.inputs["input_ids"] = batch.inputs["input_ids"] + 10**6
    with pytest.raises(IndexError):
        scored_hidden(model, batch, access)
    assert "forward" not in model.lm_head.__dict__
