"""Modular chains: problems against Python's own arithmetic, graders against hand-made solutions."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain.tasks.base import Problem
from selftrain.tasks.characters import character_tokenizer
from selftrain.tasks.modchain import ChainGrader, StepGrader, final_answer, modular_chains

DIGITS = "0123456789abcdefghijklmnopqrstu"
SIZES = {"num_sft": 300, "num_train": 200, "num_validation": 20, "num_test": 50}
# 7 + 11 = 18 (i), 18 * 3 = 54 = 8, 8 - 22 = -14 = 9 modulo 23
PROBLEM = Problem(id="0", prompt="7+b*3-m=", answer="9", meta={"modulus": 23})
SOLUTION = "7+bi*38-m9#9"


@pytest.fixture(scope="module")
def parts():
    return modular_chains(modulus=23, **SIZES)


def evaluate(prompt: str, modulus: int) -> int:
    """Evaluate from left to right in plain integers; only the end is reduced."""
    value = DIGITS.index(prompt[0])
    for operator, operand in re.findall(r"([-+*])(.)", prompt[1:]):
        other = DIGITS.index(operand)
        value = {"+": value + other, "-": value - other, "*": value * other}[operator]
    return value % modulus


def test_answers_are_those_of_integer_arithmetic(parts):
    for part in (parts.sft, parts.train, parts.validation, parts.test):
        for problem in part.problems:
            assert problem.answer == DIGITS[evaluate(problem.prompt, 23)]


def test_worked_problems_of_known_facts_alone_pass_both_graders(parts):
    known = [problem for problem in parts.sft.problems if problem.meta["num_unknown"] == 0]
    texts = [problem.solution for problem in known]
    assert known
    for grader in (parts.sft.grader, parts.sft.hidden_grader):
        assert {g.score for g in grader.grade(known, texts)} == {1.0}


def test_only_the_worked_part_has_solutions(parts):
    for part in (parts.train, parts.validation, parts.test):
        assert {problem.solution for problem in part.problems} == {None}


def test_known_facts_are_worked_rightly_and_the_others_guessed():
    """Of a fact that is shown often: always right, or right about once in m."""
    parts = modular_chains(
        modulus=7, known_fraction=0.5, guessed_fraction=1.0, **SIZES | {"num_sft": 3000}
    )
    shown: dict[str, list[bool]] = {}
    for problem in parts.sft.problems:
        for fact, result in steps(problem.solution):
            shown.setdefault(fact, []).append(DIGITS[evaluate(f"{fact}=", 7)] == result)
    assert len(shown) == 3 * 7 * 6
    shares = [sum(right) / len(right) for right in shown.values()]
    guessed = [share for share in shares if share < 1]
    assert len(guessed) == 63
    assert max(guessed) < 0.45  # 70 guesses each, right with probability 1/7
    assert sum(guessed) / len(guessed) == pytest.approx(1 / 7, abs=0.02)


def steps(solution: str) -> list[tuple[str, str]]:
    """Return the step facts that a solution shows, and their results."""
    shown = solution.partition("#")[0]
    return [(shown[i : i + 3], shown[i + 3]) for i in range(0, len(shown) - 3, 3)]


def test_solutions_end_with_their_last_value(parts):
    for problem in parts.sft.problems:
        worked, _, answer = problem.solution.partition("#")
        assert worked[-1] == answer
        assert "".join(c for i, c in enumerate(worked) if i % 3 or i == 0) == problem.prompt[:-1]


def test_unknown_steps_follow_the_share_of_unknown_facts():
    parts = modular_chains(known_fraction=0.6, **SIZES | {"num_train": 3000})
    counts = [problem.meta["num_unknown"] for problem in parts.train.problems]
    # Binomial(3, 0.4): mean 1.2, standard error below 0.02; the facts themselves add as much
    assert sum(counts) / len(counts) == pytest.approx(1.2, abs=0.08)


def test_the_same_seed_gives_the_same_parts_and_another_seed_others(parts):
    assert modular_chains(modulus=23, **SIZES).test.problems == parts.test.problems
    assert modular_chains(modulus=23, **SIZES, seed=1).test.problems != parts.test.problems


def test_texts_fit_the_character_tokenizer(parts):
    tokenizer = character_tokenizer()
    for problem in parts.sft.problems[:20]:
        ids = tokenizer(problem.prompt + problem.solution)["input_ids"]
        assert tokenizer.unk_token_id not in ids


@pytest.mark.parametrize(
    ("text", "status", "hidden"),
    [
        (SOLUTION, "correct", "correct"),
        (f" {SOLUTION}\n", "correct", "correct"),
        ("7+bj*38-m9#9", "correct", "wrong"),  # right by luck
        ("#9", "correct", "wrong"),
        ("7+bi*38-m9#8", "wrong", "wrong"),
        ("7+bi*38-m9#9#8", "wrong", "wrong"),  # the last answer counts
        ("7+bi*38-m9", "no_answer", "no_answer"),
        ("7+bi*38-m9#99", "no_answer", "no_answer"),
        ("7+bi*38-m9#n", "no_answer", "no_answer"),  # no digit to base 23
        ("", "no_answer", "no_answer"),
    ],
)
def test_grades(text, status, hidden):
    assert ChainGrader().grade([PROBLEM], [text])[0].status == status
    assert StepGrader().grade([PROBLEM], [text])[0].status == hidden


def test_the_step_grader_names_the_first_wrong_step():
    for text, step in [("7+bj*38-m9#9", 1), ("7+bi*37-m9#9", 2), ("7+bi*38-m8#9", 3)]:
        assert f"step {step}" in StepGrader().grade([PROBLEM], [text])[0].detail


@given(wrong=st.integers(0, 22), place=st.integers(0, 2))
def test_one_wrong_step_always_leads_to_a_wrong_answer(wrong, place):
    """Every step is a bijection of the running value: later right steps cannot mend it."""
    value = 7
    for i, (operator, operand) in enumerate([("+", 11), ("*", 3), ("-", 22)]):
        value = evaluate(f"{DIGITS[value]}{operator}{DIGITS[operand]}=", 23)
        if i == place:
            if value == wrong:
                return
            value = wrong
    assert value != 9


def test_the_final_answer_is_the_digit_after_the_last_mark():
    assert final_answer(PROBLEM, SOLUTION) == "9"
    assert final_answer(PROBLEM, "no mark 9") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modulus": 22}, "modulus must be a prime"),
        ({"modulus": 37}, "modulus must be a prime"),
        ({"known_fraction": 0.0}, "known_fraction"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_test": 0}, "num_test"),
        ({"modulus": 2, "num_steps": 1}, "different problems"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        modular_chains(**{**SIZES, **arguments})


def test_the_references_of_unsolved_problems_are_right_all_the_way(parts):
    texts = [problem.meta["reference"] for problem in parts.test.problems]
    for grader in (parts.test.grader, parts.test.hidden_grader):
        assert {g.score for g in grader.grade(parts.test.problems, texts)} == {1.0}
