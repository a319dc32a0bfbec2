"""What models are trained and judged on: problems that can be checked, and running text."""

from selftrain.tasks.answers import answer_classes, canonical_answer, parse_number, same_answer
from selftrain.tasks.base import Grade, Grader, Problem, Task, check_disjoint
from selftrain.tasks.characters import character_tokenizer, small_llama
from selftrain.tasks.code import CodeGrader, extract_code
from selftrain.tasks.code_datasets import load_humaneval, load_mbpp
from selftrain.tasks.corpus import (
    CorpusSplit,
    Document,
    cut_sections,
    load_corpus,
    split_corpus,
)
from selftrain.tasks.countdown import CountdownGrader, countdown
from selftrain.tasks.datasets import load_gsm8k, load_math, load_svamp
from selftrain.tasks.expressions import ExpressionError, evaluate_expression
from selftrain.tasks.extraction import (
    extract_after,
    extract_answer_is,
    extract_boxed,
    extract_final_answer,
    first_of,
    leading_number,
)
from selftrain.tasks.graders import ExactGrader, NumericGrader
from selftrain.tasks.listprog import list_programs
from selftrain.tasks.math_verify import MathGrader
from selftrain.tasks.modchain import ChainGrader, StepGrader, modular_chains
from selftrain.tasks.parts import TaskParts
from selftrain.tasks.prompts import as_chat, choose_shots, few_shot_prefix
from selftrain.tasks.tokens import blocks, encode_documents, train_tokenizer, windows
from selftrain.tasks.wrapped import GradeOnce, PermutedGrader, RandomGrader

__all__ = [
    "ChainGrader",
    "CodeGrader",
    "CorpusSplit",
    "CountdownGrader",
    "Document",
    "ExactGrader",
    "ExpressionError",
    "Grade",
    "GradeOnce",
    "Grader",
    "MathGrader",
    "NumericGrader",
    "PermutedGrader",
    "Problem",
    "RandomGrader",
    "StepGrader",
    "Task",
    "TaskParts",
    "answer_classes",
    "as_chat",
    "blocks",
    "canonical_answer",
    "character_tokenizer",
    "check_disjoint",
    "choose_shots",
    "countdown",
    "cut_sections",
    "encode_documents",
    "evaluate_expression",
    "extract_after",
    "extract_answer_is",
    "extract_boxed",
    "extract_code",
    "extract_final_answer",
    "few_shot_prefix",
    "first_of",
    "leading_number",
    "list_programs",
    "load_corpus",
    "load_gsm8k",
    "load_humaneval",
    "load_math",
    "load_mbpp",
    "load_svamp",
    "modular_chains",
    "parse_number",
    "same_answer",
    "small_llama",
    "split_corpus",
    "train_tokenizer",
    "windows",
]
