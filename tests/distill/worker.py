"""One distillation run, as a script: ``worker.py OUTPUT_DIR NUM_STEPS [server]``."""

import json
import sys
from pathlib import Path

import torch
from samplers import SharedDiskServer
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selftrain.decoding.params import SamplingParams
from selftrain.distill import DistillConfig, Distiller
from selftrain.training import OptimConfig

ROWS = [{"prompt_ids": [i, i + 1], "completion_ids": [i + 2] * (i % 4) + [1]} for i in range(3, 20)]


def build(seed: int, scale: float) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            attention_dropout=0.0,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(scale)
    return model


def reward(rows: list[dict], texts: list[str]) -> list[float]:
    return [len(text) / 10 for text in texts]


def main(output_dir: Path, num_steps: int, *, served: bool) -> None:
    student, teacher = build(0, 4.0), build(1, 8.0).requires_grad_(False)
    vocab = {f"t{i}": i for i in range(32)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="t2")), eos_token="t1"
    )
    config = DistillConfig(
        on_policy_fraction=0.5,
        mixing="example",
        num_steps=num_steps,
        batch_size=5,
        micro_batch_size=2,
        save_every=1,
        reward_weight=0.25,
        seed=13,  # in some steps only one of two processes has the student's text
        log_every=1,
        sampling=SamplingParams(max_new_tokens=4),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=2, schedule="cosine"),
    )
    sampler = SharedDiskServer(build(2, 1.0), output_dir.parent) if served else None
    distiller = Distiller(student, teacher, tokenizer, config, sampler=sampler, reward=reward)
    distiller.fit(ROWS, output_dir=output_dir, show_progress=False)
    accelerator = distiller.accelerator
    finished = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    (output_dir / f"finished{accelerator.process_index}.json").write_text(json.dumps(finished))
    # A process that leaves while its gloo threads run is aborted now and then.
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), served=sys.argv[3:] == ["server"])
