"""The loop: what it keeps, where it starts from, how it goes on, and that it learns."""

import dataclasses
import json

import pytest
import torch

from selftrain import Completion, SamplingParams
from selftrain.errors import RunConflictError
from selftrain.loops import rest_em
from selftrain.loops.config import EvaluationConfig, ImproveConfig, ReSTEMConfig
from selftrain.loops.rest_em import START, ReSTEM
from selftrain.loops.store import SampleStore
from selftrain.tasks.base import Grade
from selftrain.training import OptimConfig
from selftrain.training.snapshot import Snapshot

SHORT = SamplingParams(max_new_tokens=1, temperature=1.0)
QUICK = ReSTEMConfig(
    num_rounds=2,
    num_samples=8,
    sampling=SHORT,
    cap=4,
    keep_truncated=True,  # one token, and no end after it
    improve=ImproveConfig(num_epochs=2, batch_size=8, optim=OptimConfig(learning_rate=1e-2)),
    evaluation=EvaluationConfig(sampling=SHORT),
    chunk_size=3,
    patience=None,
)


def changed(config=QUICK, **fields):
    return dataclasses.replace(config, **fields)


@pytest.fixture
def make_loop(make_llama, char_tokenizer, make_task, tmp_path):
    def make(config=QUICK, *, folder="run", task=None, sampler=None, model=None, **fields):
        return ReSTEM(
            model or make_llama(),
            char_tokenizer,
            task or make_task(),
            config,
            validation=make_task(4, 8, name="held out"),
            output_dir=tmp_path / folder,
            sampler=sampler,
            show_progress=False,
            **fields,
        )

    return make


def test_a_model_that_knows_nothing_learns_by_trying(make_loop):
    config = changed(
        num_rounds=3,
        num_samples=64,
        cap=None,
        improve=ImproveConfig(num_epochs=20, batch_size=32, optim=OptimConfig(learning_rate=1e-2)),
    )
    loop = make_loop(config)
    result = loop.run()
    first, last = result.start.evaluations["train"], result.rounds[-1].evaluations["train"]
    assert first.greedy.mean <= 0.5
    assert last.greedy.mean >= first.greedy.mean + 0.4


def test_every_round_starts_from_the_first_weights_bit_for_bit(make_loop, monkeypatch):
    begun = []
    train = rest_em.finetune

    def finetune(model, *args, **kwargs):
        begun.append(Snapshot.take(model).fingerprint())
        return train(model, *args, **kwargs)

    monkeypatch.setattr(rest_em, "finetune", finetune)
    loop = make_loop()
    base = loop.policy.base.fingerprint()
    loop.run()
    assert begun == [base, base]


def test_restart_from_the_last_weights_starts_where_the_round_sampled_from(make_loop, monkeypatch):
    begun = []
    train = rest_em.finetune

    def finetune(model, *args, **kwargs):
        begun.append(Snapshot.take(model).fingerprint())
        return train(model, *args, **kwargs)

    monkeypatch.setattr(rest_em, "finetune", finetune)
    loop = make_loop(changed(restart="last"))
    loop.run()
    policies = [{s.policy for s in SampleStore(loop.files(n).samples).load()} for n in range(2)]
    assert policies == [{begun[0]}, {begun[1]}]
    assert begun[0] != begun[1]


def test_only_right_samples_are_trained_on_and_at_most_cap_of_a_problem(make_loop, digit_sampler):
    loop = make_loop(sampler=digit_sampler)
    loop.generate(0)
    loop.select(0)
    rows = [json.loads(line) for line in loop.files(0).rows.read_text().splitlines()]
    answers = {p.id: p.answer for p in loop.task.problems}
    assert rows
    assert all(row["text"] == answers[row["problem_id"]] for row in rows)
    counts = [sum(r["problem_id"] == p for r in rows) for p in answers]
    assert max(counts) == QUICK.cap


def test_a_round_samples_each_problem_once_whatever_was_interrupted(make_loop, digit_sampler):
    class Dying:
        def __init__(self):
            self.left = 2

        def sample(self, *args, **kwargs):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return digit_sampler.sample(*args, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        make_loop(sampler=Dying()).generate(0)
    digit_sampler.calls.clear()
    loop = make_loop(sampler=digit_sampler)
    loop.generate(0)
    assert len(digit_sampler.calls) == 1  # 8 problems in chunks of 3: two were done
    whole = make_loop(folder="whole", sampler=digit_sampler)
    whole.generate(0)
    seen, expected = (
        [(s.key, s.text, s.score) for s in SampleStore(x.files(0).samples).load()]
        for x in (loop, whole)
    )
    assert seen == expected


def test_an_interrupted_run_ends_with_the_same_weights(make_loop):
    straight = make_loop(folder="straight")
    straight.run()

    class Stop(Exception):
        pass

    def stop(round):
        raise Stop

    with pytest.raises(Stop):
        make_loop(folder="broken", on_round=stop).run()
    resumed = make_loop(folder="broken")
    resumed.run()
    assert resumed.policy.fingerprint() == straight.policy.fingerprint()
    for number in range(2):
        a, b = (loop.files(number).rows.read_bytes() for loop in (straight, resumed))
        assert a == b


def test_a_finished_run_is_only_read(make_loop, digit_sampler):
    first = make_loop(sampler=digit_sampler).run()
    digit_sampler.calls.clear()
    again = make_loop(sampler=digit_sampler).run()
    assert not digit_sampler.calls
    assert again.rounds == first.rounds
    assert again.best == first.best


def test_no_right_sample_ends_the_loop_with_the_last_good_model(make_loop, digit_sampler):
    digit_sampler.answers = "9"
    loop = make_loop(sampler=digit_sampler)
    result = loop.run()
    assert not result.rounds
    assert "no sample of round 0" in result.stopped
    assert loop.policy.fingerprint() == loop.policy.base.fingerprint()


def test_patience_ends_the_loop_when_validation_gets_no_better(make_loop):
    class Constant:
        def sample(self, prompts, *, num_samples, params, seeds=None):
            return [[Completion("0", None, None, "stop")] * num_samples for _ in prompts]

    result = make_loop(changed(num_rounds=5, patience=1), sampler=Constant()).run()
    assert len(result.rounds) == 1
    assert result.best.number == START


def test_what_cannot_be_judged_is_neither_trained_on_nor_counted(
    make_loop, make_task, digit_sampler
):
    class Unsure:
        def grade(self, problems, texts):
            return [
                Grade(None, "ungradable") if p.id == "p0" else Grade(float(t == p.answer), "")
                for p, t in zip(problems, texts, strict=True)
            ]

    loop = make_loop(task=make_task(grader=Unsure()), sampler=digit_sampler)
    loop.generate(0)
    selection = loop.select(0)
    assert selection.samples
    assert "p0" not in {s.problem_id for s in selection.samples}
    assert selection.counts["num_ungraded"] == QUICK.num_samples


def test_hinted_attempts_are_trained_on_without_the_hint(make_loop, make_task):
    class NeedsHint:
        def sample(self, prompts, *, num_samples, params, seeds=None):
            texts = [p[-2] if p.endswith("!") else "9" for p in prompts]
            return [[Completion(t, None, None, "stop")] * num_samples for t in texts]

    config = changed(
        num_samples=1, sampling=SamplingParams(max_new_tokens=1, temperature=0.0), rationalize=True
    )
    loop = make_loop(config, sampler=NeedsHint(), hint=lambda p: f"{p.prompt}{p.answer}!")
    loop.generate(0)
    loop.select(0)
    rows = [json.loads(line) for line in loop.files(0).rows.read_text().splitlines()]
    assert {row["problem_id"] for row in rows} == {p.id for p in loop.task.problems}
    plain = loop.tokenizer(loop.task.problems[0].prompt)["input_ids"]
    assert next(r for r in rows if r["problem_id"] == "p0")["prompt_ids"] == plain
    assert all(row["index"] == 1 for row in rows)


def test_rationalizing_without_a_hint_is_an_error(make_loop):
    with pytest.raises(ValueError, match="hint"):
        make_loop(changed(rationalize=True))


def test_human_solutions_join_the_rows_where_wanted(make_loop, digit_sampler):
    loop = make_loop(changed(with_solutions=True), sampler=digit_sampler)
    loop.generate(0)
    loop.select(0)
    rows = [json.loads(line) for line in loop.files(0).rows.read_text().splitlines()]
    assert sum("index" not in row for row in rows) == len(loop.task)


def test_data_of_all_rounds_is_a_union(make_loop, digit_sampler):
    loop = make_loop(changed(data="all", cap=None), sampler=digit_sampler)
    loop.generate(0)
    first = loop.select(0)
    loop.improve(0)
    loop.generate(1)
    both = loop.select(1)
    assert {s.key for s in first.samples} < {s.key for s in both.samples}
    assert {s.round for s in both.samples} == {0, 1}


def test_a_round_whose_weights_are_not_there_yet_is_refused(make_loop, digit_sampler):
    with pytest.raises(ValueError, match="call its improve first"):
        make_loop(sampler=digit_sampler).generate(1)


def test_training_on_solutions_first_gives_the_first_policy(make_loop):
    loop = make_loop(changed(solutions_first=True))
    loop.run()
    samples = SampleStore(loop.files(0).samples).load()
    assert {s.policy for s in samples} != {loop.policy.base.fingerprint()}


def test_another_configuration_in_the_same_folder_is_refused(make_loop, digit_sampler):
    make_loop(sampler=digit_sampler).generate(0)
    with pytest.raises(RunConflictError, match=r"config\.cap: 4 -> 5"):
        make_loop(changed(cap=5))


def test_other_first_weights_in_the_same_folder_are_refused(make_loop, make_llama):
    make_loop()
    with pytest.raises(RunConflictError, match="base"):
        make_loop(model=make_llama(seed=1))


def test_a_problem_in_two_tasks_is_refused(make_loop, make_task):
    with pytest.raises(ValueError, match="must not be trained on"):
        make_loop(task=make_task(9))


def test_a_sampler_that_returns_too_little_is_named(make_loop):
    class Short:
        def sample(self, prompts, *, num_samples, params, seeds=None):
            return [[Completion("0", None, None, "stop")] for _ in prompts]

    with pytest.raises(ValueError, match="num_samples=8"):
        make_loop(sampler=Short()).generate(0)


def test_a_grader_that_returns_too_little_is_named(make_loop, make_task, digit_sampler):
    class Short:
        def grade(self, problems, texts):
            return []

    with pytest.raises(ValueError, match="0 grades for"):
        make_loop(task=make_task(grader=Short()), sampler=digit_sampler).generate(0)


def test_failed_requests_are_not_graded_as_wrong(make_loop):
    class Failing:
        def sample(self, prompts, *, num_samples, params, seeds=None):
            good, bad = Completion("0", None, None, "stop"), Completion("", None, None, "error")
            return [[good, *[bad] * (num_samples - 1)] for _ in prompts]

    loop = make_loop(sampler=Failing())
    loop.generate(0)
    samples = SampleStore(loop.files(0).samples).load()
    assert all((s.score is None) == (s.finish_reason == "error") for s in samples)


def test_an_external_sampler_is_told_of_new_weights_once_a_round(make_loop, digit_sampler):
    told = []

    class Server:
        def load_weights(self, path):
            assert (path / "config.json").exists()
            told.append(path.parent.name)

        def sample(self, *args, **kwargs):
            return digit_sampler.sample(*args, **kwargs)

    make_loop(sampler=Server()).run()
    assert told[:2] == ["000", "001"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_are_all_that_is_trained_and_saved(make_loop, make_llama, digit_sampler):
    import peft

    model = make_llama()
    frozen = {n: p.clone() for n, p in model.named_parameters()}
    adapters = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, adapters)
    loop = make_loop(model=wrapped)
    result = loop.run()
    assert (result.rounds[0].folder / "model" / "adapter_config.json").exists()
    for name, parameter in model.named_parameters():
        if "lora" not in name:
            torch.testing.assert_close(
                parameter, frozen[name.replace(".base_layer", "")], rtol=0, atol=0
            )
    reloaded = peft.PeftModel.from_pretrained(make_llama(), result.rounds[0].folder / "model")
    loop.load_policy(1)
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(wrapped(ids).logits, reloaded(ids).logits)
