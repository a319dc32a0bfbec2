"""V-STaR: what the verifier learns from, where it starts, and what its choice is worth."""

import dataclasses

import pytest

from selftrain import Completion, SamplingParams
from selftrain.loops import vstar as module
from selftrain.loops.config import EvaluationConfig, ImproveConfig, ReSTEMConfig
from selftrain.loops.evaluate import ballots, by_problem, majority_at_k, summarize
from selftrain.loops.sample import Sample
from selftrain.loops.store import SampleStore
from selftrain.loops.verifier_report import VerifierReport, report_on
from selftrain.loops.vstar import VSTaR, VSTaRConfig
from selftrain.tasks.base import Grade
from selftrain.training import OptimConfig
from selftrain.training.preference import PreferenceConfig
from selftrain.training.snapshot import Snapshot

SHORT = SamplingParams(max_new_tokens=2)
CONFIG = VSTaRConfig(
    generator=ReSTEMConfig(
        num_rounds=2,
        num_samples=8,
        sampling=SHORT,
        cap=None,
        dedupe="text",
        data="all",
        keep_truncated=True,
        patience=None,
        improve=ImproveConfig(num_epochs=1, batch_size=8, optim=OptimConfig(learning_rate=1e-3)),
        evaluation=EvaluationConfig(sampling=SHORT),
        chunk_size=3,
    ),
    preference=PreferenceConfig(num_epochs=20, batch_size=4, optim=OptimConfig(learning_rate=3e-3)),
    num_candidates=8,
)


@pytest.fixture
def make_vstar(make_llama, char_tokenizer, make_task, digit_sampler, tmp_path):
    def make(config=CONFIG, *, folder="run", **fields):
        return VSTaR(
            make_llama(),
            char_tokenizer,
            make_task(9),
            config,
            validation=make_task(6, 9, name="held out"),
            output_dir=tmp_path / folder,
            show_progress=False,
            **{"sampler": digit_sampler, **fields},
        )

    return make


def generator(**changes):
    return dataclasses.replace(CONFIG, generator=dataclasses.replace(CONFIG.generator, **changes))


def test_the_verifier_ranks_better_than_chance_on_what_it_was_trained_on(make_vstar):
    vstar = make_vstar()
    vstar.run()
    vstar.sample_candidates("seen", vstar.loop.task, 2)
    report = vstar.evaluate("seen", vstar.loop.task)
    assert report.best_of_k["log_prob"][8].mean > report.pass_at_1.mean + 0.3


def test_training_begins_at_the_weights_before_the_first_round(make_vstar, monkeypatch):
    begun = []
    train = module.train_preferences

    def train_preferences(model, *args, **kwargs):
        begun.append(Snapshot.take(model).fingerprint())
        return train(model, *args, **kwargs)

    monkeypatch.setattr(module, "train_preferences", train_preferences)
    vstar = make_vstar(generator(solutions_first=True, with_solutions=True))
    vstar.run()
    vstar.loop.load_policy(0)
    assert begun == [vstar.loop.policy.fingerprint()]
    assert begun != [vstar.loop.policy.base.fingerprint()]


def test_a_run_that_was_stopped_goes_on_where_it_was(make_vstar, digit_sampler, monkeypatch):
    whole = make_vstar(folder="whole").run()

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "train_preferences", die)
        with pytest.raises(KeyboardInterrupt):
            make_vstar().run()
    digit_sampler.calls.clear()
    resumed = make_vstar().run()
    assert not digit_sampler.calls
    assert resumed.reports == whole.reports


def test_in_the_loop_keeps_at_most_so_many_of_each_class(make_vstar):
    vstar = make_vstar(dataclasses.replace(CONFIG, in_the_loop=2))
    vstar.run()
    for number in range(2):
        for samples in by_problem(vstar.loop.samples(number)).values():
            right = sum(sample.score == 1 for sample in samples)
            assert right <= 2
            assert len(samples) - right <= 2


def test_the_baseline_of_supervised_training_ranks_the_first_generators_candidates(make_vstar):
    vstar = make_vstar(dataclasses.replace(CONFIG, final_generator="first"))
    vstar.run()
    vstar.loop.load_policy(0)
    samples = SampleStore(vstar.folder / "candidates" / "validation").load()
    assert {s.policy for s in samples} == {vstar.loop.policy.fingerprint()}


def test_greedy_sampling_leaves_nothing_to_rank():
    greedy = SamplingParams(max_new_tokens=2, temperature=0.0)
    with pytest.raises(ValueError, match="temperature is 0"):
        VSTaRConfig(generator=ReSTEMConfig(num_samples=1, sampling=greedy))


def test_no_pair_is_said_and_not_trained_on(make_vstar, digit_sampler):
    class Always:
        def sample(self, prompts, *, num_samples, params, seeds=None):
            return [[Completion("9", None, None, "stop")] * num_samples for _ in prompts]

    with pytest.raises(ValueError, match="no correct"):
        make_vstar(sampler=Always()).run()


def sample(problem, index, text, score):
    return Sample(
        round=0,
        problem_id=problem,
        index=index,
        seed=0,
        text=text,
        token_ids=None,
        finish_reason="stop",
        log_prob=None,
        policy="",
        sampling="",
        grade=Grade(score, ""),
    )


def test_reports_agree_with_counting_by_hand(make_task):
    task = make_task(2)
    samples = [sample("p0", i, t, float(t == "0")) for i, t in enumerate("0012")]
    samples += [sample("p1", i, t, float(t == "1")) for i, t in enumerate("2221")]
    right_first = [float(s.score == 1) for s in samples]
    report = report_on(task, samples, verifier=right_first, reference=[0.0] * 8)
    assert report.pass_at_1.mean == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert report.best_of_k["log_prob"] == report.pass_at_k
    # Of 4: "0" wins with two votes, and "2" wins over the right "1".
    assert report.majority_at_k[4].mean == pytest.approx(1 / 2)
    # The verifier's likelihood outweighs: e votes for the right against three of 1.
    assert report.weighted_majority_at_k[4].mean == pytest.approx((1 + 0) / 2)
    assert report.best_over_majority[4].mean == pytest.approx(1 / 2)


def test_a_report_survives_its_file(make_task, tmp_path):
    samples = [sample(p, i, str(i % 2), float(i % 2)) for p in ("p0", "p1") for i in range(4)]
    report = report_on(make_task(2), samples, verifier=[0.0] * 8, reference=[0.0] * 8)
    report.save(tmp_path, "test")
    assert VerifierReport.load(tmp_path, "test") == report


def test_where_several_answers_are_right_their_chances_add_up(make_task):
    task = make_task(1)
    samples = [sample("p0", i, t, float(t in "01")) for i, t in enumerate("0122")]
    rows = by_problem(samples)
    assert {ballot.right for ballot in ballots(task, rows)} == {"0", "1"}
    # k=1: half of the samples are right; k=4: two votes for the wrong answer.
    assert majority_at_k(task, rows, [1, 4]).tolist() == [[0.5, 0.0]]


def test_what_could_not_be_judged_is_in_no_denominator(make_task):
    task = make_task(3)
    greedy = [sample("p0", 0, "0", 1.0), sample("p1", 0, "9", 0.0), sample("p2", 0, "9", None)]
    found = summarize(task, greedy)
    assert found.greedy.mean == 0.5
    assert (found.num_problems, found.num_ungradable) == (2, 1)
