import dataclasses

import pytest

from selftrain._core.config import from_dict, to_dict
from selftrain.decoding.params import SamplingParams
from selftrain.distill import DistillConfig

PRESETS = {
    "supervised_kd": ("forward_kl", ("dataset",)),
    "on_policy_gkd": ("jsd", ("student",)),
    "imit_kd": ("forward_kl", ("student", "dataset")),
    "seq_kd": ("nll", ("teacher",)),
    "f_distill": ("total_variation", ("student", "teacher")),
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
        ({"divergence": "kl"}, "'forward_kl', 'reverse_kl', 'jsd', 'total_variation'.*'nll'"),
        ({"mixing": "row"}, "mixing must be one of 'batch', 'example'"),
        ({"fixed_source": "web"}, "fixed_source must be one of 'dataset', 'teacher'"),
        ({"normalize": "sum"}, "normalize must be one of 'sequence', 'token'"),
        ({"batch_size": 0}, "batch_size must satisfy"),
        ({"micro_batch_size": 0}, "micro_batch_size must satisfy"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens must satisfy"),
        ({"divergence": "forward_kl", "beta": 0.5}, "beta=0.5 has no effect"),
        ({"divergence": "forward_kl", "jsd_scale": "unit"}, "jsd_scale='unit' has no effect"),
        ({"divergence": "nll", "loss_temperature": 2.0}, "loss_temperature=2.0 has no effect"),
        ({"sampling": SamplingParams(seed=1)}, "sampling.seed must be None"),
    ],
)
def test_bad_or_contradictory_fields_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DistillConfig(), **fields)
