"""Distil a teacher into a student on your own JSONL file, and evaluate before and after.

Shows rows from a file, `DistillConfig`'s presets and `Distiller.evaluate`. Without arguments it
writes a small file of text that every Python carries and trains a small teacher and student on it
first. Expect the acceptance on held-out rows, the mass that both models share, to rise.

On a GPU, with real models and your own rows, one {"prompt": ..., "completion": ...} a line:

    python examples/distill_jsonl.py --teacher Qwen/Qwen3-8B --student Qwen/Qwen3-0.6B \
        --data rows.jsonl --num-steps 2000

`selftrain distill` does the same from the command line, with resuming and a model card.
"""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from transformers import AutoModelForCausalLM, AutoTokenizer

from selftrain import DistillConfig, Distiller, SamplingParams
from selftrain.distill.models import ModelShape, new_llama
from selftrain.distill.row_files import load_rows
from selftrain.tasks import blocks, encode_documents, load_corpus, split_corpus, train_tokenizer
from selftrain.training import FinetuneConfig, OptimConfig, finetune


@dataclass(frozen=True)
class Args:
    """Command line."""

    teacher: str | None = None
    """Hub name or folder of the teacher; None trains a small one."""
    student: str | None = None
    """Hub name or folder of the student; None trains a small one."""
    data: Path | None = None
    """JSONL of prompts and completions; None writes a small file."""
    num_steps: int = 60
    """Steps of distillation."""
    quick: bool = False
    """A few steps of everything."""


def write_rows(path: Path, documents) -> Path:
    """Cut every document's beginning into a prompt and what follows it."""
    rows = [{"prompt": d.text[:60], "completion": d.text[60:180]} for d in documents]
    rows = [row for row in rows if row["completion"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def small_pair(documents, num_steps: int):
    tokenizer = train_tokenizer((d.text for d in documents), vocab_size=512)
    optim = OptimConfig(learning_rate=5e-3, warmup_steps=10, schedule="cosine")
    training = FinetuneConfig(num_steps=num_steps, batch_size=8, optim=optim)
    rows = blocks(encode_documents(tokenizer, documents), length=96)
    teacher, student = (new_llama(ModelShape(num_layers=n, width=96), tokenizer) for n in (4, 1))
    finetune(teacher, rows, training, title="teacher")
    finetune(student, rows, replace(training, num_steps=num_steps // 2), title="student")
    return teacher, student, tokenizer


def main(args: Args) -> None:
    if args.teacher and args.student:
        tokenizer = AutoTokenizer.from_pretrained(args.student)
        teacher, student = map(AutoModelForCausalLM.from_pretrained, (args.teacher, args.student))
    else:
        documents = split_corpus(load_corpus("python-docs")).train
        teacher, student, tokenizer = small_pair(documents, 10 if args.quick else 120)
    teacher.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        path = args.data or write_rows(Path(folder, "rows.jsonl"), load_corpus("python-docs"))
        rows = list(load_rows(path))
    held_out, rows = rows[:16], rows[16:]

    config = replace(
        DistillConfig.imit_kd(),  # half the text from the file, half from the student
        mixing="example",
        sampling=SamplingParams(max_new_tokens=256 if args.data else 32),
        max_prompt_tokens=512,
        num_steps=5 if args.quick else args.num_steps,
        batch_size=16,
        optim=OptimConfig(learning_rate=1e-3 if not args.student else 1e-5, warmup_steps=5),
    )
    distiller = Distiller(student, teacher, tokenizer, config)
    before = distiller.evaluate(held_out)
    distiller.fit(rows)
    after = distiller.evaluate(held_out)
    for name in ("loss", "acceptance", "top1_agreement"):
        print(f"{name:15}: {before[name]:.3f} -> {after[name]:.3f} on held-out rows")


if __name__ == "__main__":
    main(tyro.cli(Args))
