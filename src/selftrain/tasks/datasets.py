"""Published sets of word problems as tasks: GSM8K, MATH, SVAMP, from files or from the hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selftrain.tasks._loading import make_problems, make_task, read_shots, read_split, take_text
from selftrain.tasks.answers import canonical_answer
from selftrain.tasks.base import Grader, Problem, Task
from selftrain.tasks.extraction import (
    Extractor,
    extract_boxed,
    extract_final_answer,
    leading_number,
)
from selftrain.tasks.graders import ExactGrader
from selftrain.tasks.math_verify import MathGrader

WORD_PROBLEM = "Question: {question}\nAnswer:\n"
"""How the loaders ask a word problem; the solution begins on a line of its own."""
MATH_PROBLEM = "Problem:\n{question}\n\nSolution:\n"
"""How :func:`load_math` asks a problem."""

_ANNOTATION = re.compile(r"<<[^<>]*>>")
_MATH_CONFIGS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_NUMBER_ANSWER: Extractor = leading_number(extract_final_answer)


def load_gsm8k(
    source: str | Path = "openai/gsm8k:main",
    *,
    split: str | None = None,
    num_shots: int = 0,
    prefix: str = "",
    max_problems: int | None = None,
    strip_annotations: bool = True,
    template: str = WORD_PROBLEM,
    grader: Grader | None = None,
) -> Task:
    """Load GSM8K (Cobbe et al. 2021, arXiv 2110.14168): word problems of grade-school maths.

    Solutions are the data's own, and end in a line ``#### 72``; that is where the grader looks for
    a text's answer first. ``meta["num_steps"]`` counts the lines before it.

    Args:
        source: A ``.jsonl``, ``.jsonl.gz``, ``.json`` or ``.parquet`` file; a folder with one for
            each split; or a name on the Hugging Face hub.
        split: Of a folder or a hub name: "train" (the default) or "test". A file is taken whole.
        num_shots: How many problems of the train split stand as worked examples before every
            prompt; they are left out of the task.
        prefix: Text before every prompt instead; see :func:`few_shot_prefix`.
        max_problems: Keep a fixed random choice of so many problems.
        strip_annotations: Take the calculator marks ``<<48/2=24>>`` out of the solutions.
        template: The prompt, with ``{question}`` where the problem goes.
        grader: Judges instead of an :class:`ExactGrader`.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder has no such split.
        ValueError: If a row lacks a field or an answer, or the arguments exclude each other.
    """
    _check_template(template)

    def make(row: Mapping[str, Any], place: str) -> Problem:
        worked, found, answer = take_text(row, place, "answer").rpartition("####")
        if not found or not answer.strip():
            raise ValueError(f"row {place}: its answer does not end in a line like '#### 72'.")
        steps = worked.strip()
        if strip_annotations:
            steps = _ANNOTATION.sub("", steps)
        return Problem(
            id=f"gsm8k/{place}",
            prompt=template.replace("{question}", take_text(row, place, "question").strip()),
            answer=answer.strip(),
            solution=f"{steps}\n#### {answer.strip()}",
            meta={"num_steps": len(steps.splitlines())},
        )

    return make_task(
        "gsm8k",
        make_problems(read_split(source, split, "train"), make),
        grader or ExactGrader(extract=_NUMBER_ANSWER),
        shots=read_shots(source, num_shots, make),
        prefix=prefix,
        max_problems=max_problems,
    )


def load_math(
    source: str | Path = "EleutherAI/hendrycks_math",
    *,
    split: str | None = None,
    num_shots: int = 0,
    prefix: str = "",
    max_problems: int | None = None,
    template: str = MATH_PROBLEM,
    grader: Grader | None = None,
) -> Task:
    r"""Load MATH (Hendrycks et al. 2021, arXiv 2103.03874), or MATH-500: competition problems.

    Solutions are the data's own, with the answer in ``\boxed{...}``, which is also where the
    grader looks for it first. ``meta`` has the ``level`` (1 to 5, None where it is not known) and
    the ``subject``. The hub's ``HuggingFaceH4/MATH-500`` has a split "test" only.

    Args:
        source: A file, a folder or a hub name, as for :func:`load_gsm8k`. Of a hub name without a
            configuration, those of all seven subjects are read if it is the default.
        split: Of a folder or a hub name: "train" (the default) or "test". A file is taken whole.
        num_shots: How many problems of the train split stand as worked examples before every
            prompt; they are left out of the task.
        prefix: Text before every prompt instead; see :func:`few_shot_prefix`.
        max_problems: Keep a fixed random choice of so many problems.
        template: The prompt, with ``{question}`` where the problem goes.
        grader: Judges instead of a :class:`MathGrader`, which needs the extra ``math``.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder has no such split.
        ValueError: If a row lacks a field or an answer, or the arguments exclude each other.
    """
    _check_template(template)
    configs = _MATH_CONFIGS if source == "EleutherAI/hendrycks_math" else (None,)

    def make(row: Mapping[str, Any], place: str) -> Problem:
        solution = take_text(row, place, "solution")
        answer = row.get("answer") or extract_boxed(solution)
        if not isinstance(answer, str):
            raise ValueError(f"row {place} has no answer, and its solution no \\boxed{{...}}.")
        name = row.get("unique_id")  # where it is a number, other splits count from 0 as well
        level = re.search(r"[0-9]+", str(row.get("level")))
        question = take_text(row, place, "problem", "question").strip()
        return Problem(
            id=f"math/{name if isinstance(name, str) else place}",
            prompt=template.replace("{question}", question),
            answer=answer,
            solution=solution.strip(),
            meta={
                "level": int(level.group()) if level else None,
                "subject": row.get("subject") or row.get("type"),
            },
        )

    return make_task(
        "math",
        make_problems(read_split(source, split, "train", configs), make),
        grader or MathGrader(),
        shots=read_shots(source, num_shots, make, configs),
        prefix=prefix,
        max_problems=max_problems,
    )


def load_svamp(
    source: str | Path = "ChilleD/SVAMP",
    *,
    split: str | None = None,
    num_shots: int = 0,
    prefix: str = "",
    max_problems: int | None = None,
    template: str = WORD_PROBLEM,
    grader: Grader | None = None,
) -> Task:
    """Load SVAMP (Patel et al. 2021, arXiv 2103.07191): short word problems with one sum.

    The data has no worked solutions: a problem's is its equation and, on the next line,
    ``#### 51``. ``meta["type"]`` is the kind of sum. The answer of one problem, chal-680, is wrong
    in the published data; it is left as it is, to be comparable.

    Args:
        source: A file, a folder or a hub name, as for :func:`load_gsm8k`.
        split: Of a folder or a hub name: "test" (the default) or "train". A file is taken whole.
        num_shots: How many problems of the train split stand as worked examples before every
            prompt; they are left out of the task.
        prefix: Text before every prompt instead; see :func:`few_shot_prefix`.
        max_problems: Keep a fixed random choice of so many problems.
        template: The prompt, with ``{question}`` where the problem goes.
        grader: Judges instead of an :class:`ExactGrader`.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder has no such split.
        ValueError: If a row lacks a field or an answer, or the arguments exclude each other.
    """
    _check_template(template)

    def make(row: Mapping[str, Any], place: str) -> Problem:
        if row.get("Answer") in (None, ""):
            raise ValueError(f"row {place} has no answer (field 'Answer').")
        answer = canonical_answer(str(row["Answer"]))
        equation = re.sub(r"\.0\b", "", take_text(row, place, "Equation")).strip()
        if equation.startswith("(") and equation.endswith(")"):
            equation = equation[1:-1].strip()
        body = take_text(row, place, "Body").strip().rstrip(".,")
        question = f"{body}. {take_text(row, place, 'Question').strip()}"
        return Problem(
            id=f"svamp/{row.get('ID') or place}",
            prompt=template.replace("{question}", question),
            answer=answer,
            solution=f"{equation} = {answer}\n#### {answer}",
            meta={"type": row.get("Type")},
        )

    return make_task(
        "svamp",
        make_problems(read_split(source, split, "test"), make),
        grader or ExactGrader(extract=_NUMBER_ANSWER),
        shots=read_shots(source, num_shots, make),
        prefix=prefix,
        max_problems=max_problems,
    )


def _check_template(template: str) -> None:
    if "{question}" not in template:
        raise ValueError(f"template must hold {{question}}, got {template!r}.")
