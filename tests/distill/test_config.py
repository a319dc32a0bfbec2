import dataclasses

import pytest

from selftrain._core.config import from_dict, to_dict
from selftrain.decoding.params import SamplingParams
from selftrain.distill import DistillConfig

PRESETS = {
    "sft": ("nll", ("dataset",)),
    "supervised_kd": ("forward_kl", ("dataset",)),
    "on_policy_gkd": ("jsd", ("student",)),
    "imit_kd": ("forward_kl", ("student", "dataset")),
    "seq_kd": ("nll", ("teacher",)),
    "f_distill": ("total_variation", ("student", "teacher")),
    "rl_gkd": ("reverse_kl", ("student",)),
    "gkd_xsum": ("jsd", ("student",)),
    "gkd_wmt": ("jsd", ("student",)),
    "gkd_gsm8k": ("forward_kl", ("student",)),
    "draft": ("forward_kl", ("student",)),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_rows_of_the_methods_table(name):
    config = getattr(DistillConfig, name)()
    assert (config.divergence, config.sources) == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_configs_survive_the_way_through_plain_data(name):
    config = getattr(DistillConfig, name)()
    assert from_dict(DistillConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 1.5}, "beta must satisfy"),
        ({"on_policy_fraction": -0.1}, "on_policy_fraction must satisfy"),
        ({"loss_temperature": 0.0}, "loss_temperature must satisfy"),
        ({"divergence": "kl"}, "'forward_kl', 'reverse_kl', .*'amari', 'nll'"),
        ({"mixing": "row"}, "mixing must be one of 'batch', 'example'"),
        ({"fixed_source": "web"}, "fixed_source must be one of 'dataset', 'teacher'"),
        ({"normalize": "sum"}, "normalize must be one of 'sequence', 'token'"),
        ({"batch_size": 0}, "batch_size must satisfy"),
        ({"micro_batch_size": 0}, "micro_batch_size must satisfy"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens must satisfy"),
        ({"divergence": "forward_kl", "beta": 0.5}, "beta=0.5 has no effect"),
        ({"divergence": "forward_kl", "jsd_scale": "unit"}, "jsd_scale='unit' has no effect"),
        ({"divergence": "nll", "loss_temperature": 2.0}, "loss_temperature=2.0 has no effect"),
        ({"alpha": 0.2}, "alpha=0.2 has no effect"),
        ({"divergence": "skew_kl", "alpha": 1.0}, "alpha must satisfy"),
        ({"divergence": "amari", "alpha": -0.5}, "alpha must satisfy"),
        ({"divergence": "nll", "max_token_divergence": 1.0}, "max_token_divergence=1.0 has no"),
        ({"max_token_divergence": 0.0}, "max_token_divergence must satisfy"),
        ({"divergence_schedule": ((0.5, "kl"),)}, "divergence_schedule must be one of"),
        ({"divergence_schedule": ((0.0, "nll"),)}, "divergence_schedule must satisfy"),
        (
            {"divergence_schedule": ((0.5, "nll"), (0.5, "jsd"))},
            "divergence_schedule must satisfy",
        ),
        ({"divergence_schedule": ((0.5,),)}, "must hold pairs"),
        ({"reward_weight": 1.1}, "reward_weight must satisfy"),
        ({"reward_weight": 0.5, "on_policy_fraction": 0.0}, "reward_weight=0.5 has no effect"),
        ({"baseline": "leave_one_out"}, "baseline='leave_one_out' has no effect"),
        ({"generate_every": 0}, "generate_every must satisfy"),
        ({"generate_every": 3}, "save_every=100 must be a multiple of generate_every=3"),
        ({"generate_every": 5, "on_policy_fraction": 0.0}, "generate_every=5 has no effect"),
        ({"sampling": SamplingParams(seed=1)}, "sampling.seed must be None"),
    ],
)
def test_bad_or_contradictory_fields_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DistillConfig(), **fields)


@pytest.mark.parametrize(
    ("source", "sources"),
    [
        ("draft", ("student",)),
        ("target", ("teacher",)),
        ("both", ("student", "teacher")),
        ("dataset", ("dataset",)),
    ],
)
def test_drafts_learn_from_the_texts_of_distillspecs_table(source, sources):
    assert DistillConfig.draft(source, "reverse_kl").sources == sources


def test_a_parameter_suits_any_divergence_of_the_schedule():
    config = DistillConfig(divergence="forward_kl", divergence_schedule=((0.5, "jsd"),), beta=0.3)
    assert config.parameters("jsd")["beta"] == 0.3
    assert from_dict(DistillConfig, to_dict(config)) == config
