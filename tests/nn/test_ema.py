import copy

import pytest
import torch
from torch import nn

from selftrain.nn import EMA


def walk(model, steps, *, seed=0):
    """Move a model's trained parameters at random; yield after each move."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter))
        yield


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999, 1.0])
def test_the_average_is_the_weighted_sum_of_all_weights_so_far(decay):
    model = nn.Linear(3, 2).double()
    average, history = EMA(model, decay), [model.weight.detach().clone()]
    for _ in walk(model, 7):
        average.update()
        history.append(model.weight.detach().clone())
    n = len(history) - 1
    expected = decay**n * history[0]
    expected += sum((1 - decay) * decay ** (n - i) * history[i] for i in range(1, n + 1))
    torch.testing.assert_close(average.model.weight, nn.Parameter(expected, requires_grad=False))


def test_only_every_so_many_th_update_counts():
    model = nn.Linear(3, 2)
    every, third = EMA(model, 0.5), EMA(model, 0.5, update_every=3)
    for i, _ in enumerate(walk(model, 7), 1):
        third.update()
        if i % 3 == 0:
            every.update()
    assert torch.equal(every.model.weight, third.model.weight)
    assert third.num_updates == 7


def test_frozen_parameters_are_shared_and_trained_ones_are_not():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    average = EMA(model, 0.5).model
    assert average[0].weight is model[0].weight
    assert average[1].weight is not model[1].weight


def test_tied_parameters_stay_tied():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    average = EMA(model, 0.5)
    for _ in walk(model, 2):
        average.update()
    assert average.model["a"].weight is average.model["b"].weight
    assert not torch.equal(average.model["a"].weight, model["a"].weight)


def test_the_average_is_in_evaluation_mode_without_gradients_and_the_model_is_left_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    average = EMA(model, 0.5)
    average.update()
    assert not any(p.requires_grad for p in average.model.parameters())
    assert not any(m.training for m in average.model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_buffers_are_copied():
    model = nn.BatchNorm1d(2)
    average = EMA(model, 0.9)
    model(torch.randn(5, 2))
    average.update()
    assert torch.equal(average.model.running_mean, model.running_mean)
    assert average.model.running_mean is not model.running_mean
    assert average.model.num_batches_tracked == 1


def test_small_steps_are_not_lost_in_half_precision():
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    average = EMA(model, 0.999)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(100):
        average.update()
    expected = 2 - 0.999**100
    assert average.model.weight.dtype == torch.bfloat16
    assert average.model.weight.item() == pytest.approx(expected, rel=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_average_continues_bit_for_bit(tmp_path, dtype):
    model = nn.Linear(3, 2).to(dtype)
    start = copy.deepcopy(model)
    average = EMA(model, 0.9, update_every=2)
    for i, _ in enumerate(walk(model, 9)):
        average.update()
        if i == 4:
            average.save(tmp_path / "ema.safetensors")
            middle = copy.deepcopy(model.state_dict())
    restored = EMA(start, 0.9, update_every=2)
    start.load_state_dict(middle)
    restored.load(tmp_path / "ema.safetensors")
    steps = walk(start, 9)
    with torch.no_grad():  # the first five steps' noise is drawn and undone
        for _ in range(5):
            next(steps)
        start.load_state_dict(middle)
    for _ in steps:
        restored.update()
    assert torch.equal(restored.model.weight, average.model.weight)
    assert restored.num_updates == average.num_updates == 9


def test_another_models_file_is_refused(tmp_path):
    EMA(nn.Linear(3, 2), 0.9).save(tmp_path / "ema.safetensors")
    for other in (nn.Linear(3, 2, bias=False), nn.Linear(4, 2)):
        with pytest.raises(ValueError, match="does not hold the averages of this model"):
            EMA(other, 0.9).load(tmp_path / "ema.safetensors")


@pytest.mark.parametrize("freeze", [True, False])
def test_freezing_or_unfreezing_afterwards_is_noticed(freeze):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(freeze)
    average = EMA(model, 0.9)
    model[0].requires_grad_(not freeze)
    with pytest.raises(ValueError, match=r"0\.bias was frozen or unfrozen"):
        average.update()


@pytest.mark.parametrize(
    ("options", "text"),
    [({"decay": 1.1}, "decay must satisfy"), ({"update_every": 0}, "update_every must satisfy")],
)
def test_bad_arguments_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        EMA(nn.Linear(1, 1), **options)


def test_a_frozen_model_has_no_average():
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        EMA(nn.Linear(1, 1).requires_grad_(False), 0.5)
