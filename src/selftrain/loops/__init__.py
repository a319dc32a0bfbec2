"""Self-training loops: ReST-EM, STaR, RFT and V-STaR over one store of samples."""

from selftrain.loops.candidates import BestOfK, CandidateScorer, score_samples
from selftrain.loops.outcome_reward import (
    OutcomeRewardConfig,
    OutcomeRewardModel,
    outcome_rows,
    train_outcome_reward,
)
from selftrain.loops.pairs import (
    AnswerGroups,
    Answers,
    answer_groups,
    load_groups,
    save_groups,
    with_reference,
)
from selftrain.loops.verifier import Verifier

__all__ = [
    "AnswerGroups",
    "Answers",
    "BestOfK",
    "CandidateScorer",
    "OutcomeRewardConfig",
    "OutcomeRewardModel",
    "Verifier",
    "answer_groups",
    "load_groups",
    "outcome_rows",
    "save_groups",
    "score_samples",
    "train_outcome_reward",
    "with_reference",
]
