import subprocess
import sys
import textwrap
import time

import pytest
import torch

from selftrain.training import OptimConfig, build_optimizer, load_checkpoint, save_checkpoint


def train_a_step(model, optimizer):
    model(torch.tensor([[3, 4, 5]])).logits.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def trained(make_llama):
    model = make_llama()
    optimizer = build_optimizer(model, OptimConfig())
    train_a_step(model, optimizer)
    return model, optimizer


def state(model, optimizer):
    tensors = [p.detach().clone() for p in model.parameters()]
    moments = [optimizer.state[p] for p in model.parameters()]
    return tensors + [value.clone() for s in moments for _, value in sorted(s.items())]


def test_the_next_step_after_loading_equals_the_one_without_saving(trained, make_llama, tmp_path):
    model, optimizer = trained
    save_checkpoint(tmp_path, 7, model, optimizer, {"note": [1, 2]})
    other = make_llama(seed=9)
    other_optimizer = build_optimizer(other, OptimConfig())
    checkpoint = load_checkpoint(tmp_path, other, other_optimizer)
    assert (checkpoint.step, checkpoint.extra) == (7, {"note": [1, 2]})
    train_a_step(model, optimizer)
    train_a_step(other, other_optimizer)
    for a, b in zip(state(model, optimizer), state(other, other_optimizer), strict=True):
        assert torch.equal(a, b)


def test_tied_weights_are_stored_once_and_stay_tied(trained, make_llama, tmp_path):
    path = save_checkpoint(tmp_path, 1, *trained)
    num_values = sum(p.numel() for p in trained[0].parameters())
    assert path.stat().st_size < 3 * 4 * num_values * 1.2
    other = make_llama(seed=9)
    load_checkpoint(tmp_path, other, build_optimizer(other, OptimConfig()))
    assert other.lm_head.weight is other.model.embed_tokens.weight
    assert torch.equal(other.lm_head.weight, trained[0].lm_head.weight)


def test_only_the_newest_checkpoint_remains(trained, tmp_path):
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, step, *trained)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000010.safetensors"]


def test_the_newest_of_two_checkpoints_is_loaded(trained, tmp_path):
    first = save_checkpoint(tmp_path, 1, *trained)
    content = first.read_bytes()
    save_checkpoint(tmp_path, 2, *trained)
    first.write_bytes(content)  # as if killed before the older one was removed
    assert load_checkpoint(tmp_path, *trained).step == 2


def test_without_a_checkpoint_nothing_is_changed(trained, tmp_path):
    before = state(*trained)
    assert load_checkpoint(tmp_path / "absent", *trained) is None
    assert all(torch.equal(a, b) for a, b in zip(before, state(*trained), strict=True))


def test_another_model_is_an_error_that_names_the_difference(trained, make_llama, tmp_path):
    save_checkpoint(tmp_path, 1, *trained)
    other = make_llama(num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"another model: it differs in model\.layers\.1"):
        load_checkpoint(tmp_path, other, build_optimizer(other, OptimConfig()))


def test_a_damaged_file_is_an_error_that_names_it(trained, tmp_path):
    path = save_checkpoint(tmp_path, 1, *trained)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint-00000001\.safetensors is not a whole"):
        load_checkpoint(tmp_path, *trained)


def test_a_full_disk_is_a_clear_error_and_keeps_the_last_checkpoint(trained, tmp_path):
    save_checkpoint(tmp_path, 1, *trained)
    model, optimizer = trained
    script = textwrap.dedent(
        f"""
        import resource, torch
        from selftrain.training import save_checkpoint
        model = torch.nn.Linear(512, 512)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save_checkpoint({str(tmp_path)!r}, 2, model, torch.optim.AdamW(model.parameters()))
        except OSError as error:
            print("OSError:", error)
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert "OSError: could not write" in result.stdout, result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000001.safetensors"]
    assert load_checkpoint(tmp_path, model, optimizer).step == 1


@pytest.mark.bench
def test_saving_three_million_parameters_takes_less_than_25_milliseconds(make_llama, tmp_path):
    model = make_llama(hidden_size=256, intermediate_size=768, num_hidden_layers=3, vocab_size=1024)
    optimizer = build_optimizer(model, OptimConfig())
    train_a_step(model, optimizer)
    times = []
    for step in range(30):
        start = time.perf_counter()
        save_checkpoint(tmp_path, step, model, optimizer)
        times.append(1e3 * (time.perf_counter() - start))
    median = sorted(times)[15]
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M: {median:.1f} ms")
    assert median < 25
