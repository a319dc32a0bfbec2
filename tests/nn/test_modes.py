import pytest

from selftrain.nn import training_mode


def test_modes_of_submodules_come_back_after_an_error(make_llama):
    model = make_llama().train()
    model.lm_head.eval()

    def fail():
        with training_mode(False, model):
            assert not any(m.training for m in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model.training
    assert model.model.training
    assert not model.lm_head.training


def test_a_model_in_the_mode_already_is_left_alone(make_llama):
    model = make_llama().train()
    model.lm_head.eval()
    with training_mode(True, model):
        assert not model.lm_head.training
