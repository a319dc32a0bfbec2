"""One preference run, as a script: ``preference_worker.py OUTPUT_DIR NUM_STEPS MAX_TOKENS``."""

import json
import random
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from selftrain.training import (
    OptimConfig,
    PreferenceConfig,
    PreferenceGroup,
    TokenRow,
    sequence_log_probs,
    train_preferences,
)


def build(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=24,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def answers(seed: int = 0, num_groups: int = 7) -> list[tuple[list[TokenRow], list[TokenRow]]]:
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, 24) for _ in range(draw.randint(low, high)))

    result = []
    for _ in range(num_groups):
        prompt = tokens(2, 8)
        classes = (
            [
                TokenRow(prompt_ids=prompt, completion_ids=(*tokens(1, 6), 1))
                for _ in range(draw.randint(1, 4))
            ]
            for _ in range(2)
        )
        result.append(tuple(classes))
    return result


def groups_of(model: torch.nn.Module, seed: int = 0, num_groups: int = 7) -> list[PreferenceGroup]:
    return [
        PreferenceGroup(
            chosen=tuple(chosen),
            rejected=tuple(rejected),
            chosen_reference=tuple(sequence_log_probs(model, chosen).tolist()),
            rejected_reference=tuple(sequence_log_probs(model, rejected).tolist()),
        )
        for chosen, rejected in answers(seed, num_groups)
    ]


def main(output_dir: Path, num_steps: int, max_tokens: int) -> None:
    accelerator = Accelerator()
    model = build()
    together = sequence_log_probs(model, [r for pair in answers() for rows in pair for r in rows])
    config = PreferenceConfig(
        num_steps=num_steps,
        batch_size=5,
        micro_batch_tokens=max_tokens,
        log_every=1,
        save_every=1,
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=2, schedule="cosine"),
    )
    groups = groups_of(model)
    train_preferences(
        model,
        groups,
        config,
        output_dir=output_dir,
        eval_groups=groups,
        accelerator=accelerator,
        show_progress=False,
    )
    finished = {"world": accelerator.num_processes, "log_probs": together.tolist()}
    path = output_dir / f"finished{accelerator.process_index}.json"
    path.write_text(json.dumps(finished))
    # A process that leaves while its gloo threads run is aborted now and then.
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
