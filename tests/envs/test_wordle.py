"""Wordle: marks against brute force, the rules, the prefix tree, logged games."""

from collections import Counter
from itertools import product

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

import selftrain.envs  # noqa: F401 - registers the id
from selftrain.envs.wordle import WordleEnv, WordleVectorEnv, show_board
from selftrain.envs.wordle_games import (
    WordleGame,
    load_wordle,
    log_wordle,
    play_wordle,
    save_wordle,
)
from selftrain.envs.wordle_words import ABSENT, CORRECT, PRESENT, WordList, embedded_words, feedback

SMALL = WordList(["cab", "abc", "bac", "add", "dad", "bad"])


def marks_by_striking_out(guess, answer):
    """The rules as people apply them: strike out letters of the answer as they are used."""
    marks, left = [ABSENT] * len(guess), list(answer)
    for i, letter in enumerate(guess):
        if letter == answer[i]:
            marks[i] = CORRECT
            left.remove(letter)
    for i, letter in enumerate(guess):
        if marks[i] != CORRECT and letter in left:
            marks[i] = PRESENT
            left.remove(letter)
    return marks


def type_word(env, word):
    for letter in word:
        step = env.step(ord(letter) - ord("a"))
    return step


def test_marks_are_those_of_striking_out_for_all_pairs_of_three_letters():
    codes = np.array(list(product(range(3), repeat=4)), np.uint8)
    marks = feedback(codes[:, None], codes[None])
    expected = [[marks_by_striking_out(g, a) for a in codes.tolist()] for g in codes.tolist()]
    np.testing.assert_array_equal(marks, expected)


@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), min_size=1, max_size=9))
def test_every_letter_is_marked_as_often_as_it_can_be(pairs):
    guess, answer = np.array(pairs).T
    marks = feedback(guess, answer)
    found = Counter(guess[marks != ABSENT].tolist())
    assert found == Counter(guess.tolist()) & Counter(answer.tolist())


def test_a_repeated_letter_is_absent_once_its_number_is_used_up():
    letters = WordList(["speed", "erase", "abide", "steal", "crepe"]).letters
    speed = letters[0]
    assert feedback(speed, speed).tolist() == [3] * 5
    assert feedback(speed, letters[1]).tolist() == [2, 1, 2, 2, 1]  # erase: two e
    assert feedback(speed, letters[2]).tolist() == [1, 1, 2, 1, 2]  # abide: one e
    assert feedback(speed, letters[3]).tolist() == [3, 1, 3, 1, 1]  # steal: e in place
    assert feedback(speed, letters[4]).tolist() == [1, 2, 3, 2, 1]  # crepe


def test_the_tree_holds_all_prefixes_of_words_and_no_others():
    prefixes = {word[:k] for word in SMALL.words for k in range(3)}
    letters = [chr(ord("a") + i) for i in range(26)]
    for prefix in map("".join, product("abcd", repeat=2)):
        expected = {w[2] for w in SMALL.words if w.startswith(prefix)}
        assert set(SMALL.next_letters(prefix)) == expected
    assert len(SMALL.tree) == len(prefixes) + len(SMALL.words)
    assert [c for c in letters if c in SMALL.next_letters("")] == list("abcd")


def test_the_embedded_words_are_many_distinct_words_of_five_letters():
    words = embedded_words()
    assert len(words) > 200
    assert words == tuple(sorted(set(words)))
    assert {len(word) for word in words} == {5}
    assert {"class", "tuple", "while"} <= set(words)


@pytest.mark.parametrize(
    ("words", "answers", "said"),
    [
        ([], None, "words is empty"),
        (["abc", "ab"], None, "'ab'"),
        (["Abc"], None, "'Abc'"),
        (["abc", "abc"], None, "twice"),
        (["abc"], ["abd"], "'abd' is not one of the 1 words"),
        (["abc"], [], "answers is empty"),
    ],
)
def test_a_bad_word_list_is_refused(words, answers, said):
    with pytest.raises(ValueError, match=said):
        WordList(words, answers=answers)


def test_the_environment_passes_the_checker_of_gymnasium():
    check_env(gym.make("selftrain/Wordle-v0", render_mode="ansi").unwrapped)


def test_a_game_costs_one_for_every_wrong_guess_and_ends_with_the_answer():
    env = WordleEnv(words=SMALL, max_guesses=4)
    env.reset(options={"answer": "dad"})
    assert type_word(env, "add")[1:3] == (-1.0, False)
    board, reward, terminated, truncated, _ = type_word(env, "dad")
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert show_board(board, 3) == "add\n??!\ndad\n!!!"
    with pytest.raises(RuntimeError, match="over"):
        env.step(0)


def test_a_lost_game_returns_minus_the_number_of_guesses():
    env = WordleEnv(words=SMALL, max_guesses=2)
    env.reset(options={"answer": "dad"})
    assert type_word(env, "cab")[1:3] == (-1.0, False)
    assert type_word(env, "cab")[1:3] == (-1.0, True)


def test_a_letter_that_leads_to_no_word_ends_the_game_with_the_return_of_a_lost_one():
    env = WordleEnv(words=SMALL, max_guesses=5)
    env.reset(options={"answer": "dad"})
    _, first, *_ = type_word(env, "cab")
    env.step(0)
    board, rest, terminated, _, _ = env.step(25)
    assert terminated
    assert first + rest == -5.0
    assert show_board(board, 3) == "cab\n.!.\na"


def test_the_mask_is_the_letters_of_the_tree():
    env = WordleEnv(words=SMALL)
    _, info = env.reset(options={"answer": "dad"})
    for prefix, letter in (("", "b"), ("b", "a"), ("ba", "d"), ("", "d")):
        shown = "".join(chr(ord("a") + i) for i in np.flatnonzero(info["action_mask"]))
        assert shown == SMALL.next_letters(prefix)
        info = env.step(ord(letter) - ord("a"))[4]


def test_games_side_by_side_are_games_alone():
    """Each row of the vector environment, replayed in an environment of its own, step by step."""
    rng = np.random.default_rng(0)
    vector = WordleVectorEnv(7, words=SMALL, max_guesses=3)
    alone = [WordleEnv(words=SMALL, max_guesses=3) for _ in range(7)]
    boards, info = vector.reset(seed=5)

    def follow(row):
        answer = SMALL.words[vector._boards.answers[row]]
        return alone[row].reset(options={"answer": answer})[0]

    np.testing.assert_array_equal(boards, [follow(row) for row in range(7)])
    ended, num_games = np.zeros(7, bool), 0
    for _ in range(200):
        odd = rng.random(7) < 0.05  # now and then a letter that leads nowhere
        actions = np.where(odd, 25, [rng.choice(np.flatnonzero(m)) for m in info["action_mask"]])
        boards, rewards, terminated, truncated, info = vector.step(actions)
        for row in range(7):
            if ended[row]:
                num_games += 1
                expected = follow(row), 0.0, False
            else:
                expected = alone[row].step(int(actions[row]))[:3]
            np.testing.assert_array_equal(boards[row], expected[0])
            assert (rewards[row], terminated[row]) == expected[1:]
        assert not truncated.any()
        ended = terminated
    assert num_games > 50


def test_boards_returned_earlier_stay_as_they_were():
    env = WordleVectorEnv(1, words=SMALL)
    first, _ = env.reset(options={"answers": ["dad"]})
    env.step(np.array([0]))
    assert not first.any()


def test_the_seed_sets_the_answers():
    def answers(seed):
        env = WordleVectorEnv(50, words=WordList())
        env.reset(seed=seed)
        return env._boards.answers.tolist()

    assert answers(3) == answers(3)
    assert answers(3) != answers(4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda env: env.reset(options={"answers": ["dad"]}), "answers must be 2 words"),
        (lambda env: env.reset(options={"answers": ["dad", "dud"]}), "'dud' is not one"),
        (lambda env: env.reset(options={"answer": "dad"}), "knows only 'answers'"),
        (lambda env: env.step(np.array([0])), "actions must be 2 integers"),
        (lambda env: env.step(np.array([0.0, 1.0])), "actions must be 2 integers"),
        (lambda env: env.step(np.array([0, 26])), r"from 0 \(a\) to 25"),
    ],
)
def test_bad_arguments_of_the_vector_environment_are_refused(call, said):
    env = WordleVectorEnv(2, words=SMALL)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=said):
        call(env)


def agrees(word, game, upto):
    return all(
        marks_by_striking_out(guess, game.answer) == marks_by_striking_out(guess, word)
        for guess in game.guesses[:upto]
    )


def test_a_player_of_skill_one_never_guesses_against_the_marks():
    for game in log_wordle(SMALL, 60, skill=1.0, seed=1):
        assert all(agrees(guess, game, k) for k, guess in enumerate(game.guesses))


def test_a_player_without_skill_solves_as_often_as_chance():
    games = log_wordle(SMALL, 4000, skill=0.0, max_guesses=2, seed=2)
    expected = 1 - (5 / 6) ** 2
    assert abs(np.mean([g.solved for g in games]) - expected) < 4 * 0.5 / np.sqrt(4000)


def test_more_skill_solves_more_in_fewer_guesses():
    words = WordList()
    solved, lengths = [], []
    for skill in (0.0, 0.5, 1.0):
        games = log_wordle(words, 400, skill=skill, seed=3)
        solved.append(np.mean([g.solved for g in games]))
        lengths.append(np.mean([len(g.guesses) for g in games]))
    assert solved[0] < 0.1 < solved[1] < solved[2]
    assert lengths[0] > lengths[1] > lengths[2]


def test_skills_are_taken_in_turn():
    games = log_wordle(SMALL, 5, skill=(0.0, 1.0), seed=0)
    assert [g.skill for g in games] == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert games == log_wordle(SMALL, 5, skill=(0.0, 1.0), seed=0)


def test_played_games_are_the_guesses_of_the_policy():
    def first_letter(boards, mask):
        return mask.argmax(1)

    games = play_wordle(first_letter, SMALL, max_guesses=2)
    assert [g.answer for g in games] == list(SMALL.answers)
    expected = {"abc": ("abc",)}  # the first word in the alphabet, again and again
    assert {g.answer: g.guesses for g in games} == {
        w: expected.get(w, ("abc", "abc")) for w in SMALL.words
    }


def test_a_policy_that_types_no_word_solves_nothing():
    games = play_wordle(lambda boards, mask: np.full(len(boards), 25), SMALL)
    assert [g.guesses for g in games] == [()] * 6
    assert not any(g.solved for g in games)


def test_games_survive_the_file(tmp_path):
    games = [*log_wordle(SMALL, 20, skill=0.3), WordleGame("dad", ())]
    save_wordle(tmp_path / "games.jsonl", games)
    assert load_wordle(tmp_path / "games.jsonl") == games


def test_a_row_that_is_no_game_is_named(tmp_path):
    path = tmp_path / "games.jsonl"
    path.write_text('{"answer": "dad", "guesses": ["bad"]}\n{"answer": "dad", "guesses": "bad"}\n')
    with pytest.raises(ValueError, match=r"games\.jsonl:2"):
        load_wordle(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_wordle(tmp_path / "none.jsonl")
