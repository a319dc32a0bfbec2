"""Compiled steps; inductor needs a C++ compiler, and takes its time."""

import shutil

import pytest
import torch

from selftrain.decoding.cache import SlotCache
from selftrain.decoding.cache.compiled import CompiledStep
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.speculative import SpeculativeDecoder

# inductor itself uses what torch has deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU"
)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("num_rows", [1, 2])
def test_compiled_steps_score_as_plain_ones(make_llama, num_rows):
    model = make_llama(sharpness=2.0).double()
    rng = torch.Generator().manual_seed(0)
    prompts = torch.randint(2, 45, (num_rows, 5), generator=rng).tolist()
    caches = [
        SlotCache(model, capacity=40),
        SlotCache(model, capacity=40, step=CompiledStep(model), sizes=(1, 3)),
    ]
    with torch.inference_mode():
        for cache in caches:
            cache.prefill(prompts)
        for start, new in ((5, 1), (6, 3), (7, 3), (9, 1), (10, 2)):  # 2 is not compiled for
            tokens = torch.randint(2, 45, (num_rows, new), generator=rng)
            positions = (start + torch.arange(new)).expand(num_rows, -1).contiguous()
            plain, compiled = (c.forward(tokens, positions, extent=start + new) for c in caches)
            # transformers' norms compute in float32, whose sums the compiler orders anew
            torch.testing.assert_close(compiled, plain, atol=1e-6, rtol=0)


@pytest.mark.slow
@needs_compiler
def test_compiled_decoding_gives_the_same_tokens(make_llama):
    target = make_llama(sharpness=2.5).double()
    draft = make_llama(sharpness=2.5, seed=1, num_hidden_layers=1).double()
    ids = torch.tensor([[5, 6, 7], [3, 4, 5]])
    params = SamplingParams(max_new_tokens=30, seed=0)
    plain, compiled = (
        SpeculativeDecoder(target, draft, num_draft_tokens=3, compile=c).generate(
            ids, params=params, eos_token_ids=()
        )
        for c in (False, True)
    )
    # target and draft meet in equal shapes here: neither may run the other's graph
    assert torch.equal(plain.sequences, compiled.sequences)


def test_what_cannot_be_compiled_is_refused(make_llama, make_model):
    target = make_llama()
    with pytest.raises(ValueError, match="give num_draft_tokens a number"):
        SpeculativeDecoder(target, target, num_draft_tokens="auto", compile=True)
    with pytest.raises(ValueError, match="the target uses HoleyCache"):
        SpeculativeDecoder(target, target, cache="dynamic", compile=True)
