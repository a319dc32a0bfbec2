"""The runs of ``loops.py``: tasks, models from scratch, loops and controls, each kept on disk."""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import LlamaForCausalLM, PreTrainedModel

from selftrain import ReSTEM, ReSTEMConfig, VSTaR, VSTaRConfig, tasks
from selftrain._core.io import atomic_folder, read_json, write_json
from selftrain._core.rng import derive
from selftrain.decoding import HFSampler, SamplingParams
from selftrain.loops import (
    OutcomeRewardConfig,
    OutcomeRewardModel,
    answer_groups,
    outcome_rows,
    score_samples,
    train_outcome_reward,
)
from selftrain.loops.config import EvaluationConfig, ImproveConfig
from selftrain.loops.evaluate import by_problem, majority_at_k, pass_at_k, powers
from selftrain.loops.generate import Draw, generate
from selftrain.loops.rows import RowWriter
from selftrain.loops.store import SampleStore
from selftrain.loops.verifier_report import report_on
from selftrain.tasks import PermutedGrader, RandomGrader, TaskParts
from selftrain.tasks.sandbox import Sandbox
from selftrain.training import FinetuneConfig, OptimConfig, finetune
from selftrain.training.preference import PreferenceConfig

Row = dict[str, Any]
TASKS: dict[str, Callable[..., TaskParts]] = {
    "modchain": tasks.modular_chains,
    "countdown": tasks.countdown,
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of one task; what is reported is in :data:`SETTINGS`."""

    task: str
    options: dict[str, Any]
    """Arguments of the task's function."""
    max_new_tokens: int
    sft_steps: int = 400
    sft_rate: float = 3e-3
    num_rounds: int = 2
    num_samples: int = 8
    cap: int = 4
    dedupe: str | None = None
    temperature: float = 1.0
    steps: int = 400
    rate: float = 2e-3
    batch_size: int = 64
    weight_decay: float = 0.0
    num_test_samples: int = 16
    vstar_dedupe: str | None = "text"
    num_candidates: int = 32
    dpo_steps: int = 300
    dpo_rate: float = 1e-3
    beta: float = 0.5
    max_per_class: int = 8
    orm_steps: int = 100
    orm_rate: float = 1e-3

    @property
    def sampling(self) -> SamplingParams:
        """How samples are drawn, in training and for pass@k."""
        return SamplingParams(max_new_tokens=self.max_new_tokens, temperature=self.temperature)

    def optim(self, rate: float, steps: int) -> OptimConfig:
        """Return the optimizer of a training with so many steps."""
        return OptimConfig(
            learning_rate=rate,
            warmup_steps=min(20, steps // 4),
            schedule="cosine",
            weight_decay=self.weight_decay,
            betas=(0.9, 0.98),
        )

    def loop(self, seed: int) -> ReSTEMConfig:
        """Return ReST-EM's settings."""
        return ReSTEMConfig(
            num_rounds=self.num_rounds,
            num_samples=self.num_samples,
            sampling=self.sampling,
            cap=self.cap,
            dedupe=self.dedupe,  # pyrefly: ignore[bad-argument-type]
            patience=None,
            improve=ImproveConfig(
                first_steps=self.steps,
                step_growth=1.0,
                batch_size=self.batch_size,
                optim=self.optim(self.rate, self.steps),
                evaluations=1,
                patience=None,
                log_every=self.steps,
            ),
            evaluation=EvaluationConfig(sampling=self.sampling),
            chunk_size=512 // self.num_samples,
            batch_size=512,
            seed=seed,
        )

    def vstar(self, seed: int) -> VSTaRConfig:
        """Return V-STaR's settings; its generator starts from the supervised model."""
        generator = replace(
            self.loop(seed),
            num_rounds=1,
            cap=None if self.vstar_dedupe else self.cap,
            dedupe=self.vstar_dedupe,  # pyrefly: ignore[bad-argument-type]
            data="all",
            with_solutions=True,
        )
        preference = PreferenceConfig(
            beta=self.beta,
            problem_weighting="problem",
            num_steps=self.dpo_steps,
            batch_size=16,
            optim=self.optim(self.dpo_rate, self.dpo_steps),
            seed=derive(seed, "verifier"),
            save_every=None,
        )
        return VSTaRConfig(
            generator=generator,
            preference=preference,
            max_per_class=self.max_per_class,
            num_candidates=self.num_candidates,
        )


@lru_cache(maxsize=3)
def _draw(name: str, seed: int, options: tuple[tuple[str, Any], ...]) -> TaskParts:
    """Draw a task, once in a process."""
    return TASKS[name](seed=seed, **dict(options))


@dataclass(frozen=True)
class Job:
    """One run of one task and seed."""

    setting: Setting
    seed: int
    run: str


class Bench:
    """A task, its supervised start, and the runs that go on from it."""

    def __init__(self, setting: Setting, work: Path, seed: int) -> None:
        torch.set_num_threads(1)
        self.setting, self.seed = setting, seed
        self.folder = work / setting.task / f"seed{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._open = ExitStack()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @cached_property
    def parts(self) -> TaskParts:
        """The task of this seed."""
        name, options = self.setting.task, self.setting.options
        if name != "listprog":
            return _draw(name, self.seed, tuple(options.items()))
        sandbox = self._open.enter_context(Sandbox(num_workers=1))
        return tasks.list_programs(seed=self.seed, sandbox=sandbox, **options)

    @cached_property
    def tokenizer(self) -> Any:
        """A token a character."""
        return tasks.character_tokenizer()

    def base(self) -> PreTrainedModel:
        """Return the supervised model, trained from scratch the first time."""
        path = self.folder / "base"
        if not path.exists():
            model = tasks.small_llama(self.tokenizer, seed=self.seed)
            self._fit(model, self.parts.sft, self.setting.sft_steps, self.setting.sft_rate)
            with atomic_folder(path) as part:
                model.save_pretrained(part)
        return LlamaForCausalLM.from_pretrained(path)

    def _fit(self, model: PreTrainedModel, solved: tasks.Task, steps: int, rate: float) -> None:
        config = FinetuneConfig(
            num_steps=steps,
            batch_size=self.setting.batch_size,
            optim=self.setting.optim(rate, steps),
            seed=derive(self.seed, "sft"),
            save_every=None,
        )
        rows = RowWriter(solved, model, self.tokenizer).of_solutions()
        finetune(model, rows, config, accelerator=Accelerator(), show_progress=False)

    def row(self, run: str) -> Row:
        """Do a run, or read what came of it."""
        path = self.folder / f"{run}.json"
        if not path.exists():
            begun = time.perf_counter()
            row = {"task": self.setting.task, "seed": self.seed, "run": run}
            row |= RUNS[run](self)
            write_json(path, row | {"seconds": time.perf_counter() - begun})
        return read_json(path)

    def restem(self, name: str, *, train: tasks.Task | None = None, **changes: Any) -> Row:
        """Run ReST-EM with changed settings, and return what is measured after every round."""
        config = replace(self.setting.loop(self.seed), **changes)
        loop = ReSTEM(
            self.base(),
            self.tokenizer,
            train or self.parts.train,
            config,
            validation=self.parts.validation,
            output_dir=self.folder / name,
            test=self.parts.test,
            accelerator=Accelerator(),
            show_progress=False,
        )
        result = loop.run()
        rounds = [result.start, *result.rounds]
        return {
            "test": [self._right(loop, done.number) for done in rounds],
            "validation": [done.validation for done in rounds],
            "train": [done.evaluations["train"].greedy.mean for done in rounds],
            "false_positives": [done.false_positive_fraction for done in result.rounds],
            "solved": [done.solved_fraction for done in result.rounds],
            "num_selected": [done.num_selected for done in result.rounds],
            "spent": [done.seconds for done in rounds],
        }

    def _right(self, loop: ReSTEM, number: int) -> str:
        """Return a 1 or 0 for every test problem."""
        store = SampleStore(loop.files(number).evaluation("test") / "greedy")
        scores = {sample.problem_id: sample.score for sample in store.load()}
        return "".join(str(int(scores[p.id] == 1)) for p in self.parts.test.problems)

    def control(self, name: str, grader: Any) -> Row:
        """Run one round on ReST-EM's first samples, with rewards that say nothing."""
        self._share_samples(self.folder / name, grades=False)
        train = replace(self.parts.train, grader=grader)
        return self.restem(name, train=train, num_rounds=1)

    def vstar(self, name: str, **changes: Any) -> Row:
        """Run V-STaR with changed settings."""
        config = replace(self.setting.vstar(self.seed), **changes)
        if config.generator.num_samples == self.setting.num_samples:
            self._share_samples(self.folder / name / "generator", grades=True)
        result = VSTaR(
            self.base(),
            self.tokenizer,
            self.parts.train,
            config,
            validation=self.parts.validation,
            output_dir=self.folder / name,
            test=self.parts.test,
            solved=self._solved(),
            accelerator=Accelerator(),
            show_progress=False,
        ).run()
        rounds = [result.generator.start, *result.generator.rounds]
        return {
            "reports": {name: asdict(report) for name, report in result.reports.items()},
            "greedy": [done.evaluations["test"].greedy.mean for done in rounds],
        }

    def supervised(self, solution: Callable[[tasks.Problem, Sequence[str]], str]) -> Row:
        """Fine-tune the base on one solution of each problem that ReST-EM's last round solved.

        Args:
            solution: Chooses it, given the problem and ReST-EM's right samples.
        """
        number = self.setting.num_rounds - 1
        store = SampleStore(self.folder / "restem" / "rounds" / f"{number:03d}" / "samples")
        right: dict[str, list[str]] = {}
        for sample in store.load():
            if sample.score == 1 and sample.finish_reason == "stop":
                right.setdefault(sample.problem_id, []).append(sample.text)
        solved = tuple(
            replace(p, solution=solution(p, right[p.id]))
            for p in self.parts.train.problems
            if p.id in right
        )
        model, setting = self.base(), self.setting
        task = replace(self.parts.train, problems=solved)
        self._fit(model, task, setting.steps, setting.rate)
        return {"test": [self._greedy(model)], "num_selected": [len(solved)]}

    def _greedy(self, model: PreTrainedModel) -> str:
        """Return a 1 or 0 for every test problem."""
        test, params = self.parts.test, replace(self.setting.sampling, temperature=0.0)
        prompts = [test.prompt(problem) for problem in test.problems]
        sampler = HFSampler(model, self.tokenizer, batch_size=512)
        texts = [found[0].text for found in sampler.sample(prompts, num_samples=1, params=params)]
        grades = test.grader.grade(test.problems, texts)
        return "".join(str(int(grade.score == 1)) for grade in grades)

    def curves(self) -> Row:
        """Sample the test problems before ReST-EM and after it, for pass@k and Maj@k."""
        number, test = self.setting.num_rounds - 1, self.parts.test
        after = self.folder / "restem" / "rounds" / f"{number:03d}" / "model"
        row: Row = {}
        for name, path in (("before", self.folder / "base"), ("after", after)):
            model = LlamaForCausalLM.from_pretrained(path)
            sampler = HFSampler(model, self.tokenizer, batch_size=512)
            draw = Draw(
                round=0,
                num_samples=self.setting.num_test_samples,
                params=self.setting.sampling,
                seed=derive(self.seed, "curves"),
                policy=name,
            )
            with SampleStore(self.folder / "curves" / name) as store:
                generate(store, test, sampler, draw, chunk_size=32, show_progress=False)
                rows = by_problem(store.load())
            ks = powers(self.setting.num_test_samples)
            row[name] = {
                "pass": dict(zip(ks, pass_at_k(rows, ks).mean(0).tolist(), strict=True)),
                "majority": dict(
                    zip(ks, majority_at_k(test, rows, ks).mean(0).tolist(), strict=True)
                ),
                "rates": [float(np.mean([s.score for s in rows[p.id]])) for p in test.problems],
            }
        return row

    def outcome_reward(self) -> Row:
        """Train an outcome reward model on the data of V-STaR's verifier; rank its candidates."""
        folder, setting = self.folder / "vstar", self.setting
        base = self.base()
        writer = RowWriter(self.parts.train, base, self.tokenizer)
        samples = SampleStore(folder / "generator/rounds/000/samples").load()
        groups = answer_groups(
            samples, writer, max_per_class=setting.max_per_class, seed=self.seed
        ).groups
        model = OutcomeRewardModel(base, self.tokenizer)
        config = OutcomeRewardConfig(
            num_steps=setting.orm_steps,
            batch_size=setting.batch_size,
            optim=setting.optim(setting.orm_rate, setting.orm_steps),
            seed=derive(self.seed, "orm"),
            save_every=None,
        )
        rows = outcome_rows(groups)
        train_outcome_reward(model, rows, config, accelerator=Accelerator(), show_progress=False)
        candidates = SampleStore(folder / "candidates" / "test").load()
        scores = score_samples(model, candidates, self.parts.test).tolist()
        report = report_on(
            self.parts.test, candidates, verifier=scores, reference=[0.0] * len(scores)
        )
        return {"reports": {"test": asdict(report)}}

    def _share_samples(self, run: Path, *, grades: bool) -> None:
        """Let a run begin with the first samples of ReST-EM, which would be its own as well."""
        kept, place = self.folder / "restem/rounds/000/samples", run / "rounds/000/samples"
        if not place.exists():
            place.mkdir(parents=True)
            for path in kept.glob("*" if grades else "samples-*"):
                shutil.copy(path, place)

    def _solved(self) -> tasks.Task:
        """Return the worked problems that are worked rightly."""
        sft = self.parts.sft
        grades = sft.grader.grade(sft.problems, [p.solution or "" for p in sft.problems])
        right = [p for p, g in zip(sft.problems, grades, strict=True) if g.score == 1]
        return replace(sft, problems=tuple(right)).take(500)


def _permuted(bench: Bench) -> Row:
    grader = PermutedGrader(bench.parts.train.grader, seed=bench.seed)
    return bench.control("permuted", grader)


def _random(bench: Bench) -> Row:
    """As many texts are right at random as are right in truth, about."""
    grader = RandomGrader(0.25, seed=bench.seed)
    return bench.control("random", grader)


def _few(bench: Bench) -> Row:
    train = bench.parts.train
    return bench.restem("few", train=train.take(len(train) // 4, seed=bench.seed))


def _own(problem: tasks.Problem, right: Sequence[str]) -> str:
    return right[derive(0, "own", problem.id) % len(right)]


def _given(problem: tasks.Problem, right: Sequence[str]) -> str:
    return problem.meta["reference"]


def _once(bench: Bench) -> Row:
    setting = bench.setting
    return bench.restem("once", num_rounds=1, num_samples=setting.num_samples * setting.num_rounds)


def _vstar_twice(bench: Bench) -> Row:
    generator = replace(bench.setting.vstar(bench.seed).generator, num_rounds=2)
    return bench.vstar("vstar_twice", generator=generator)


def _vstar_once(bench: Bench) -> Row:
    """As many samples as those of two rounds, all from the supervised model."""
    num_samples = 2 * bench.setting.num_samples
    generator = bench.setting.vstar(bench.seed).generator
    return bench.vstar("vstar_once", generator=replace(generator, num_samples=num_samples))


def _vstar_last(bench: Bench) -> Row:
    """The generator and the candidates of two rounds, with a verifier that saw the second alone."""
    for part in ("generator", "candidates"):
        shutil.copytree(
            bench.folder / "vstar_twice" / part,
            bench.folder / "vstar_last" / part,
            dirs_exist_ok=True,
        )
    generator = replace(bench.setting.vstar(bench.seed).generator, num_rounds=2)
    return bench.vstar("vstar_last", generator=generator, verifier_data="last")


RUNS: dict[str, Callable[[Bench], Row]] = {
    "restem": lambda bench: bench.restem("restem"),
    "vstar": lambda bench: bench.vstar("vstar"),
    "permuted": _permuted,
    "random": _random,
    "once": _once,
    "continued": lambda bench: bench.restem("continued", restart="last"),
    "few": _few,
    "own_one": lambda bench: bench.supervised(_own),
    "human": lambda bench: bench.supervised(_given),
    "vstar_twice": _vstar_twice,
    "vstar_once": _vstar_once,
    "vstar_last": _vstar_last,
    "curves": lambda bench: bench.curves(),
    "orm": lambda bench: bench.outcome_reward(),
}
FIRST = "restem"
"""The run whose samples the others use."""
MAIN: Sequence[str] = (FIRST, "vstar", "permuted", "random")
FOLLOWING: dict[str, Sequence[str]] = {FIRST: MAIN[1:]}
"""What can be run after a run."""
FOLLOWING_FOR_ORDERINGS: dict[str, Sequence[str]] = {
    FIRST: (
        *MAIN[1:],
        "curves",
        "once",
        "continued",
        "few",
        "own_one",
        "human",
        "vstar_once",
        "vstar_twice",
    ),
    "vstar": ("orm",),
    "vstar_twice": ("vstar_last",),
}
"""The same with the runs that only the table of orderings needs."""
SETTINGS = {
    "modchain": Setting(
        task="modchain",
        options={
            "modulus": 7,
            "guessed_fraction": 0.5,
            "num_sft": 16_000,
            "num_train": 1500,
            "num_validation": 100,
            "num_test": 500,
        },
        max_new_tokens=14,
        num_samples=16,
        cap=10,
        sft_steps=1200,
        steps=500,
        vstar_dedupe=None,  # repetition is what tells right chains from lucky ones
        dpo_steps=400,
    ),
    "countdown": Setting(
        task="countdown",
        options={
            "max_number": 20,
            "num_sft": 1500,
            "num_train": 7000,
            "num_validation": 100,
            "num_test": 500,
        },
        max_new_tokens=14,
        sft_steps=500,
        dedupe="text",
        steps=600,
        rate=3e-3,
        weight_decay=0.1,
        dpo_steps=250,
    ),
    "listprog": Setting(
        task="listprog",
        # Many problems with few samples each: what is learnt goes by the number of solved problems.
        options={
            "num_operations": 5,
            "num_sft": 500,
            "num_train": 10_000,
            "num_validation": 100,
            "num_test": 500,
        },
        max_new_tokens=32,
        num_rounds=3,
        num_samples=2,
        dedupe="text",
        batch_size=32,
        sft_steps=800,
        steps=600,
        weight_decay=0.1,
    ),
}


def quick(setting: Setting) -> Setting:
    """Return sizes to see that it runs."""
    options = setting.options | {
        "num_sft": 256,
        "num_train": 48,
        "num_validation": 8,
        "num_test": 8,
    }
    if setting.task == "countdown":
        options |= {"num_numbers": 2, "max_number": 40}
    return replace(
        setting,
        options=options,
        sft_steps=100,
        num_rounds=2,
        num_samples=4,
        steps=2,
        num_test_samples=4,
        num_candidates=4,
        dpo_steps=2,
        orm_steps=2,
    )


def run_job(job: Job, work: Path) -> Row:
    """Do one run in this process."""
    with Bench(job.setting, work, job.seed) as bench:
        return bench.row(job.run)


def prepare(setting: Setting, seed: int, work: Path) -> float:
    """Train the supervised model of a seed; return the seconds it took."""
    path = work / setting.task / f"seed{seed}" / "base-seconds.json"
    if not path.exists():
        begun = time.perf_counter()
        with Bench(setting, work, seed) as bench:
            bench.base()
        write_json(path, time.perf_counter() - begun)
    return read_json(path)
