"""Learn Wordle from logged games alone, with a transformer that scores the next letter.

Games of players of different strength are logged; conservative Q-learning (arXiv 2006.04779) learns
from them with a head that classifies (HL-Gauss, arXiv 2403.03950) and with one that regresses, and
then plays every answer once. It prints how many words the players of the log and the learned values
find, and in how many guesses. A thousand updates are few for a transformer: expect more of a GPU.

    python examples/learn_wordle_offline.py                     # minutes on one core
    python examples/learn_wordle_offline.py --alpha 1 --target sarsa
    python examples/learn_wordle_offline.py --device cuda --num-words 0 --num-games 20000 \
        --num-features 256 --num-layers 6 --num-updates 50000
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from selftrain.envs import (
    WordleGame,
    WordList,
    embedded_words,
    load_wordle,
    log_wordle,
    play_wordle,
)
from selftrain.nn import QNetwork, value_head
from selftrain.ops import HLGauss, Support
from selftrain.rl import CQL, CQLConfig, LegalLetters, WordleEncoder, wordle_episodes


@dataclass(frozen=True)
class Args:
    """Command line."""

    num_words: int = 40
    """Words of the game, spread over the embedded list; 0 for all of them."""
    num_games: int = 3000
    """Games in the log."""
    games: Path | None = None
    """A JSONL file of games ("answer", "guesses") over the same words, in place of new ones."""
    target: Literal["q_learning", "sarsa", "monte_carlo"] = "q_learning"
    """What values are trained towards."""
    alpha: float = 0.1
    """Factor of the conservative penalty."""
    num_updates: int = 1500
    """Updates with each head."""
    num_features: int = 48
    """Width of the transformer."""
    num_layers: int = 2
    """Blocks of the transformer."""
    device: str = "cpu"
    """Where to train."""
    seed: int = 0
    """Of games, weights and batches."""
    quick: bool = False
    """A few updates, to see that it runs."""


def describe(who: str, games: list[WordleGame]) -> str:
    """Return a line on games: how many were won, and in how many guesses."""
    won = [len(game.guesses) for game in games if game.solved]
    guesses = f"{np.mean(won):.2f} guesses" if won else "no guess was right"
    return f"{who:<24} {len(won) / len(games):6.1%} found, {guesses}"


def learn(transform: HLGauss | None, words: WordList, games: list[WordleGame], args: Args) -> CQL:
    """Return values learned from the games with one head."""
    torch.manual_seed(args.seed)
    encoder = WordleEncoder(num_features=args.num_features, num_layers=args.num_layers)
    network = QNetwork(encoder, 26, value_head(transform)).to(args.device)
    config = CQLConfig(
        target=args.target,
        alpha=args.alpha,
        discount=1.0,  # a guess costs the same whenever it is made
        num_steps=1 if args.target == "monte_carlo" else 5,  # a word at a time
        learning_rate=1e-3,
        num_updates=args.num_updates,
        seed=args.seed,
    )
    learner = CQL(network, config, legal=LegalLetters(words))
    learner.fit(wordle_episodes(games, words), show_progress=True)
    return learner


def main(args: Args) -> None:
    everything = embedded_words()
    step = len(everything) // args.num_words if args.num_words else 1
    words = WordList(everything[::step][: args.num_words or None])
    num_games, skills = args.num_games, (0.0, 0.5, 1.0)
    games = load_wordle(args.games) if args.games else log_wordle(
        words, num_games, skill=skills, seed=args.seed
    )  # fmt: skip
    print(f"{len(words.words)} words, {len(games)} logged games")
    for skill in sorted({game.skill for game in games if game.skill is not None}):
        print(describe(f"log, skill {skill:g}", [g for g in games if g.skill == skill]))
    heads = {"HL-Gauss": HLGauss(Support(-7.0, 1.0, 51)), "squared error": None}
    for name, transform in heads.items():
        learner = learn(transform, words, games, args)
        played = play_wordle(lambda boards, _, by=learner: by.choose(boards), words)
        print(describe(f"learned, {name}", played))


if __name__ == "__main__":
    given = tyro.cli(Args)
    main(Args(num_words=20, num_games=60, num_updates=20) if given.quick else given)
