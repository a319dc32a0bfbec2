"""The kernels are operators that torch knows: checked, traced, compiled through."""

import jaxtyping
import pytest
import torch
from cases import draft_block

from selftrain.kernels.best import verify_best
from selftrain.kernels.sample import sample_rows
from selftrain.kernels.verify import verify_sampled
from selftrain.ops.verification import sample_tokens, verify_draft

LAW = (1.0, None, None, 1.0, 0.0)


@pytest.fixture
def without_shape_checks():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_operators_pass_opcheck():
    target, draft, tokens, options = draft_block(2, 2, 50)
    seeds, starts = options["seeds"], options["starts"]
    address = (tokens, seeds, starts)
    torch.library.opcheck(verify_sampled, (target, draft, *address, *LAW, True, True))
    torch.library.opcheck(verify_sampled, (target, None, *address, *LAW, False, True))
    torch.library.opcheck(verify_best, (target, *address, *LAW, True))
    torch.library.opcheck(sample_rows, (target[:, 0], seeds, starts, 2, 0, *LAW))


@pytest.mark.parametrize("rule", ["token", "block", "greedy", "coupled"])
@pytest.mark.usefixtures("without_shape_checks")
def test_verification_compiles_as_one_graph(rule):
    target, draft, tokens, options = draft_block(2, 2, 50, seed=1)

    def verify(target, draft, tokens, seeds, starts):
        address = {"seeds": seeds, "starts": starts}
        return verify_draft(target, draft, tokens, rule=rule, backend="triton", **address)

    arguments = (target, draft, tokens, options["seeds"], options["starts"])
    compiled = torch.compile(verify, fullgraph=True, backend="aot_eager")(*arguments)
    for got, want in zip(compiled, verify(*arguments), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("without_shape_checks")
def test_sampling_compiles_as_one_graph():
    logits = torch.randn(3, 70, generator=torch.Generator().manual_seed(0))

    def sample(logits, seeds):
        return sample_tokens(logits, seeds=seeds, positions=seeds, stream=2, backend="triton")

    arguments = (logits, torch.arange(3))
    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")(*arguments)
    assert torch.equal(compiled, sample(*arguments))
