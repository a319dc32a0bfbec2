"""One self-training run, as a script: ``loop_worker.py OUTPUT_DIR``."""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selftrain.decoding.params import SamplingParams
from selftrain.loops.config import EvaluationConfig, ImproveConfig, ReSTEMConfig
from selftrain.loops.rest_em import ReSTEM
from selftrain.tasks.base import Grade, Problem, Task
from selftrain.training import OptimConfig

LETTERS = "abcdefghijklmnop"
SHORT = SamplingParams(max_new_tokens=2)


class FirstCharacter:
    def grade(self, problems, texts):
        return [
            Grade(float(text[:1] == problem.answer), "")
            for problem, text in zip(problems, texts, strict=True)
        ]


def build_model(vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *LETTERS, *"012="])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def build_loop(output_dir: Path) -> ReSTEM:
    tokenizer = build_tokenizer()
    problems = tuple(
        Problem(id=f"{letter}", prompt=f"{letter}=", answer=str(i % 3))
        for i, letter in enumerate(LETTERS)
    )
    config = ReSTEMConfig(
        num_rounds=2,
        num_samples=16,
        sampling=SHORT,
        keep_truncated=True,
        improve=ImproveConfig(
            num_epochs=2, batch_size=8, micro_batch_size=4, optim=OptimConfig(learning_rate=3e-3)
        ),
        evaluation=EvaluationConfig(num_samples=4, sampling=SHORT),
        patience=None,
        chunk_size=2,
    )
    return ReSTEM(
        build_model(len(tokenizer)),
        tokenizer,
        Task("letters", problems[:11], FirstCharacter()),
        config,
        validation=Task("held out", problems[11:], FirstCharacter()),
        output_dir=output_dir,
        show_progress=False,
    )


def main(output_dir: Path) -> None:
    loop = build_loop(output_dir)
    loop.run()
    accelerator = loop.accelerator
    finished = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    (output_dir / f"finished{accelerator.process_index}.json").write_text(json.dumps(finished))
    # A process that leaves while its gloo threads run is aborted now and then.
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
