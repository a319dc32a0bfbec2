"""Wordle for agents: legal letters and episodes against the environment, what the encoder sees."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.envs import WordleEnv, WordleGame, WordleVectorEnv, WordList, log_wordle
from selftrain.rl.wordle import LegalLetters, WordleEncoder, wordle_episodes

WORDS = WordList(["cab", "abc", "bac", "add", "dad", "bad", "ada"])


def test_legal_letters_are_those_of_the_environment_at_every_step():
    env, legal, rng = WordleVectorEnv(20, words=WORDS, max_guesses=2), LegalLetters(WORDS), 0
    boards, info = env.reset(seed=1)
    rng = np.random.default_rng(0)
    for _ in range(40):
        got = legal(torch.from_numpy(boards)).numpy()
        over = (boards[:, 0] > 0).all(-1)  # nothing comes next; the words' first letters
        np.testing.assert_array_equal(got[~over], info["action_mask"][~over])
        actions = np.array([rng.choice(np.flatnonzero(m)) for m in info["action_mask"]])
        boards, _, _, _, info = env.step(actions)


def test_after_letters_that_lead_to_no_word_none_is_legal():
    board = torch.zeros(1, 2, 6, dtype=torch.uint8)
    board[0, 0, :2] = torch.tensor([26, 1])  # "za"
    assert not LegalLetters(WORDS)(board).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_an_episode_is_what_the_environment_shows_when_the_game_is_played(seed, max_guesses):
    (game,) = log_wordle(WORDS, 1, skill=0.5, max_guesses=max_guesses, seed=seed)
    (episode,) = wordle_episodes([game], WORDS, max_guesses=max_guesses)
    env = WordleEnv(words=WORDS, max_guesses=max_guesses)
    board, _ = env.reset(options={"answer": game.answer})
    np.testing.assert_array_equal(episode.observations[0], board)
    for t, action in enumerate(episode.actions.tolist()):
        board, reward, terminated, _, _ = env.step(action)
        np.testing.assert_array_equal(episode.observations[t + 1], board)
        assert reward == episode.rewards[t]
        assert terminated == (t == len(episode) - 1)
    assert episode.terminated
    assert not episode.truncated


def test_a_game_that_was_left_is_truncated():
    (episode,) = wordle_episodes([WordleGame("dad", ("cab",))], WORDS)
    assert episode.truncated
    assert not episode.terminated


@pytest.mark.parametrize(
    ("game", "said"),
    [
        (WordleGame("dad", ()), "1 to 6 guesses"),
        (WordleGame("dad", ("cab",) * 7), "1 to 6 guesses"),
        (WordleGame("dad", ("dad", "cab")), "ends with the answer"),
        (WordleGame("dad", ("dud",)), "'dud' is not one"),
        (WordleGame("dud", ("dad",)), "'dud' is not one"),
    ],
)
def test_a_game_that_cannot_be_is_refused(game, said):
    with pytest.raises(ValueError, match=said):
        wordle_episodes([game], WORDS)


def encoder():
    torch.manual_seed(0)
    return WordleEncoder(num_letters=3, max_guesses=4, num_features=16, num_heads=2).eval()


def boards(games):
    found = wordle_episodes(games, WORDS, max_guesses=4)
    return torch.from_numpy(np.concatenate([e.observations for e in found]))


def test_the_encoder_tells_all_boards_apart():
    games = log_wordle(WORDS, 30, skill=0.3, max_guesses=4, seed=2)
    distinct = torch.unique(boards(games), dim=0)
    features = encoder()(distinct)
    distances = torch.cdist(features, features) + 10 * torch.eye(len(features))
    assert len(distinct) > 100
    assert distances.min() > 1e-4


def test_each_board_is_encoded_by_itself():
    model, batch = encoder(), boards(log_wordle(WORDS, 4, max_guesses=4))
    alone = torch.cat([model(board[None]) for board in batch])
    torch.testing.assert_close(model(batch), alone, rtol=1e-4, atol=1e-5)


def test_every_weight_of_the_encoder_is_trained():
    model = encoder()
    model(boards(log_wordle(WORDS, 20, skill=0.2, max_guesses=4))).square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_features": 10, "num_heads": 4}, "num_heads must divide"),
        ({"num_layers": 0}, "num_layers must satisfy"),
        ({"max_guesses": 0}, "max_guesses must satisfy"),
    ],
)
def test_bad_sizes_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        WordleEncoder(**change)
