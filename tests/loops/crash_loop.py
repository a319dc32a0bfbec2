"""Run a whole ReST-EM loop in processes that can be killed.

    python crash_loop.py MODEL_FOLDER

imports everything, says "ready", and then, for every folder that it reads, starts a process that
runs the loop in this folder. It prints that process's id and, when it is gone, its exit code and
the seconds that it had a processor. The process is a fork of this one, so that a hundred of them do
not import torch a hundred times.
"""

import gc
import os
import sys
from pathlib import Path

import torch
from conftest import FirstCharacter, problems
from transformers import AutoModelForCausalLM, AutoTokenizer

from selftrain import SamplingParams
from selftrain.loops.config import EvaluationConfig, ImproveConfig, ReSTEMConfig
from selftrain.loops.rest_em import ReSTEM
from selftrain.tasks.base import Task
from selftrain.training import OptimConfig

SHORT = SamplingParams(max_new_tokens=3)
CONFIG = ReSTEMConfig(
    num_rounds=2,
    num_samples=8,
    sampling=SHORT,
    cap=4,
    keep_truncated=True,
    rationalize=True,
    patience=None,
    improve=ImproveConfig(num_epochs=3, batch_size=4, optim=OptimConfig(learning_rate=1e-2)),
    evaluation=EvaluationConfig(num_samples=2, sampling=SHORT),
    chunk_size=2,
)


def run(model_folder: Path, folder: Path) -> None:
    """Start or continue the loop, and write down what it does in ``journal`` beside its folder."""
    torch.set_num_threads(1)
    journal = os.open(folder / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    loop = ReSTEM(
        AutoModelForCausalLM.from_pretrained(model_folder),
        AutoTokenizer.from_pretrained(model_folder),
        Task("digits", problems(12), FirstCharacter()),
        CONFIG,
        validation=Task("held out", problems(4, 12), FirstCharacter()),
        output_dir=folder / "run",
        hint=lambda problem: f"{problem.answer}{problem.prompt}",
        on_samples=lambda samples: os.write(journal, b"written\n"),
        show_progress=False,
    )
    draw = loop.policy.sampler.sample

    class Noting:
        def sample(self, *args, **kwargs):
            os.write(journal, b"asked\n")
            return draw(*args, **kwargs)

    loop.policy.sampler = Noting()
    loop.run()


def main(model_folder: Path) -> None:
    """Serve until the standard input ends."""
    AutoModelForCausalLM.from_pretrained(model_folder)  # what is slow the first time only
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)  # the answers alone go to the standard output
            run(model_folder, Path(line.rstrip("\n")))
            os._exit(0)
        print(pid, flush=True)
        _, status, usage = os.wait4(pid, 0)
        seconds = usage.ru_utime + usage.ru_stime
        print(os.waitstatus_to_exitcode(status), seconds, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
