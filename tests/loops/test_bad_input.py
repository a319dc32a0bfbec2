"""Every mistake gets a sentence that names it: section by section what a user may get wrong."""

import dataclasses

import pytest

from selftrain import Completion, HFSampler, SamplingParams
from selftrain._core.config import from_dict, to_dict
from selftrain.loops.config import EvaluationConfig, ImproveConfig, ReSTEMConfig
from selftrain.loops.generate import Draw
from selftrain.loops.rest_em import ReSTEM
from selftrain.loops.rows import RowWriter
from selftrain.loops.vstar import VSTaRConfig
from selftrain.tasks.base import Grade, Problem, Task

SHORT = SamplingParams(max_new_tokens=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_rounds": 0}, "num_rounds"),
        ({"num_samples": 0}, "num_samples"),
        ({"cap": 0}, "cap"),
        ({"patience": 0}, "patience"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"batch_size": -1}, "batch_size"),
        ({"min_score": 1.5}, "min_score"),
        ({"dedupe": "words"}, "dedupe"),
        ({"weighting": "all"}, "weighting"),
        ({"restart": "best"}, "restart"),
        ({"data": "none"}, "data"),
        ({"seed": -1}, "seed"),
        ({"sampling": SamplingParams(temperature=0.0)}, "temperature 0"),
        ({"sampling": SamplingParams(seed=3)}, r"sampling\.seed"),
    ],
)
def test_a_setting_out_of_range_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ReSTEMConfig(**fields)


@pytest.mark.parametrize("fields", [{"temperature": -0.1}, {"top_k": -1}, {"top_k": 0}])
def test_a_law_that_does_not_exist_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        SamplingParams(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_epochs": 0.0}, "num_epochs"),
        ({"first_steps": 0}, "first_steps"),
        ({"step_growth": 0.5}, "step_growth"),
        ({"evaluations": 0}, "evaluations"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_training_settings_out_of_range_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ImproveConfig(**fields)


def test_copies_of_the_greedy_text_are_refused_everywhere():
    greedy = SamplingParams(temperature=0.0)
    with pytest.raises(ValueError, match="temperature 0"):
        EvaluationConfig(num_samples=4, sampling=greedy)
    with pytest.raises(ValueError, match="temperature 0"):
        Draw(round=0, num_samples=2, params=greedy, seed=0, policy="")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_candidates": 0}, "num_candidates"),
        ({"max_per_class": 0}, "max_per_class"),
        ({"in_the_loop": 0}, "in_the_loop"),
        ({"verifier_data": "some"}, "verifier_data"),
        ({"final_generator": "best"}, "final_generator"),
    ],
)
def test_verifier_settings_out_of_range_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        VSTaRConfig(**fields)


@pytest.mark.parametrize("config", [ReSTEMConfig(), VSTaRConfig()])
def test_an_unknown_setting_in_a_file_is_named(config):
    with pytest.raises(ValueError, match="no field colour"):
        from_dict(type(config), {**to_dict(config), "colour": 1})


def test_a_task_without_problems_is_refused():
    with pytest.raises(ValueError, match="problems is empty"):
        Task("none", (), None)


def test_two_problems_of_one_id_are_refused():
    problem = Problem(id="a", prompt="1+1=", answer="2")
    with pytest.raises(ValueError, match="'a' occurs twice"):
        Task("twice", (problem, problem), None)


@pytest.mark.parametrize("score", [float("nan"), -0.5, 2.0])
def test_a_score_outside_zero_and_one_is_refused(score):
    with pytest.raises(ValueError, match="score"):
        Grade(score, "odd")


@pytest.fixture
def loop_of(make_llama, char_tokenizer, make_task, tmp_path):
    def make(task=None, config=None, **fields):
        return ReSTEM(
            fields.pop("model", None) or make_llama(),
            fields.pop("tokenizer", char_tokenizer),
            task or make_task(),
            config or ReSTEMConfig(sampling=SHORT, evaluation=EvaluationConfig(sampling=SHORT)),
            validation=make_task(4, 8, name="held out"),
            output_dir=tmp_path,
            show_progress=False,
            **fields,
        )

    return make


def test_a_prompt_beyond_the_context_is_named_with_its_length(loop_of, make_task):
    task = make_task(2, prefix="a" * 200)
    with pytest.raises(ValueError, match="prompt of 203 tokens"):
        loop_of(task).generate(0)


def test_nothing_that_ends_a_text_is_refused(make_llama, char_tokenizer, make_task):
    import copy

    model, tokenizer = make_llama(), copy.deepcopy(char_tokenizer)
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="eos"):
        RowWriter(make_task(), model, tokenizer)


def test_no_solution_to_begin_with_is_said(loop_of, make_task):
    bare = make_task()
    bare = dataclasses.replace(
        bare, problems=tuple(dataclasses.replace(p, solution=None) for p in bare.problems)
    )
    config = ReSTEMConfig(
        sampling=SHORT, evaluation=EvaluationConfig(sampling=SHORT), solutions_first=True
    )
    with pytest.raises(ValueError, match="no problem with a solution"):
        loop_of(bare, config).run()


def test_a_grader_that_judges_nothing_is_no_score_of_zero(loop_of, make_task):
    class Silent:
        def grade(self, problems, texts):
            return [Grade(None, "ungradable", "no key") for _ in texts]

    with pytest.raises(ValueError, match="could be judged"):
        loop_of(make_task(grader=Silent()), sampler=Zeros()).evaluate(-1)


class Zeros:
    def sample(self, prompts, *, num_samples, params, seeds=None):
        return [[Completion("0", None, None, "stop")] * num_samples for _ in prompts]


def test_a_sampler_out_of_positions_says_so(make_llama, char_tokenizer):
    sampler = HFSampler(make_llama(), char_tokenizer)
    with pytest.raises(ValueError, match="128"):
        sampler.sample(["a"], num_samples=1, params=SamplingParams(max_new_tokens=500))
