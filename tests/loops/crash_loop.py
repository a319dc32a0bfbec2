"""Run whole loops in processes that can be killed.

    python crash_loop.py MODEL_FOLDER

imports everything, says "ready", and then, for every line "JOB FOLDER" that it reads, starts a
process that does the job in this folder. It prints that process's id and, when it is gone, its exit
code and the seconds that it had a processor. The process is a fork of this one, so that a hundred
of them do not import torch a hundred times.
"""

import dataclasses
import gc
import os
import sys
from pathlib import Path

import torch
from conftest import FirstCharacter, problems
from transformers import AutoModelForCausalLM, AutoTokenizer

from selftrain import HFSampler, SamplingParams
from selftrain.loops import (
    Draw,
    EvaluationConfig,
    ImproveConfig,
    ReSTEM,
    ReSTEMConfig,
    SampleStore,
    VSTaR,
    VSTaRConfig,
    generate,
)
from selftrain.tasks.base import Task
from selftrain.training import OptimConfig
from selftrain.training.preference import PreferenceConfig

SHORT = SamplingParams(max_new_tokens=3)
FAST = OptimConfig(learning_rate=1e-2)
TINY = {
    "num_rounds": 2,
    "num_samples": 8,
    "sampling": SHORT,
    "keep_truncated": True,
    "patience": None,
    "improve": ImproveConfig(num_epochs=3, batch_size=4, optim=FAST),
    "evaluation": EvaluationConfig(num_samples=2, sampling=SHORT),
    "chunk_size": 2,
}
TASK = Task("digits", problems(12), FirstCharacter())
MANY = Task("many digits", problems(50), FirstCharacter())
VALIDATION = Task("held out", problems(4, 12), FirstCharacter())


class Noting:
    """A sampler that writes down when it is asked."""

    def __init__(self, sampler, journal: int) -> None:
        self._sampler, self._journal = sampler, journal

    def sample(self, *args, **kwargs):
        os.write(self._journal, b"asked\n")
        return self._sampler.sample(*args, **kwargs)


def run_loop(kind: str, model, tokenizer, folder: Path, journal: int) -> None:
    """Start or continue ReST-EM with hints, or V-STaR."""
    common = {
        "validation": VALIDATION,
        "output_dir": folder / "run",
        "on_samples": lambda samples: os.write(journal, b"written\n"),
        "show_progress": False,
    }
    if kind == "vstar":
        config = VSTaRConfig(
            generator=dataclasses.replace(ReSTEMConfig.vstar(), **TINY),
            preference=PreferenceConfig(num_epochs=2, batch_size=4, optim=FAST, save_every=2),
            num_candidates=4,
        )
        whole = VSTaR(model, tokenizer, TASK, config, **common)
        policy = whole.loop.policy
    else:
        config = ReSTEMConfig(**TINY, cap=4, rationalize=True)
        whole = ReSTEM(
            model, tokenizer, TASK, config, hint=lambda p: f"{p.answer}{p.prompt}", **common
        )
        policy = whole.policy
    policy.sampler = Noting(policy.sampler, journal)
    whole.run()


def run_share(rank: int, num_ranks: int, model, tokenizer, folder: Path, journal: int) -> None:
    """Sample one process's share of the problems."""
    draw = Draw(round=0, num_samples=8, params=SHORT, seed=0, policy="p")
    with SampleStore(folder / "run", rank=rank) as store:
        generate(
            store,
            MANY,
            Noting(HFSampler(model, tokenizer), journal),
            draw,
            chunk_size=1,
            rank=rank,
            num_ranks=num_ranks,
            on_samples=lambda samples: os.write(journal, b"written\n"),
            show_progress=False,
        )


def run(job: str, model_folder: Path, folder: Path) -> None:
    """Do a job, and write down what is done in ``journal``."""
    torch.set_num_threads(1)
    journal = os.open(folder / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    if "/" in job:
        run_share(*map(int, job.split("/")), model, tokenizer, folder, journal)
    else:
        run_loop(job, model, tokenizer, folder, journal)


def main(model_folder: Path) -> None:
    """Serve until the standard input ends."""
    AutoModelForCausalLM.from_pretrained(model_folder)  # what is slow the first time only
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        job, _, folder = line.rstrip("\n").partition(" ")
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)  # the answers alone go to the standard output
            run(job, model_folder, Path(folder))
            os._exit(0)
        print(pid, flush=True)
        _, status, usage = os.wait4(pid, 0)
        seconds = usage.ru_utime + usage.ru_stime
        print(os.waitstatus_to_exitcode(status), seconds, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
