"""Metrics of sampled answers, exact wherever there is a closed form, and intervals around them.

All take plain numbers with problems along the first axis, compute in float64 and know nothing of
models. Averages over problems are the caller's: ``values.mean(0)``, or :func:`bootstrap_interval`.
"""

from selftrain.stats.at_k import best_of_k, pass_at_k
from selftrain.stats.false_positives import FalsePositives, false_positive_rate
from selftrain.stats.intervals import Interval, bootstrap_interval
from selftrain.stats.votes import majority_at_k, majority_at_k_counts, unite_answers
from selftrain.stats.weighted_votes import VoteEstimate, weighted_majority_at_k

__all__ = [
    "FalsePositives",
    "Interval",
    "VoteEstimate",
    "best_of_k",
    "bootstrap_interval",
    "false_positive_rate",
    "majority_at_k",
    "majority_at_k_counts",
    "pass_at_k",
    "unite_answers",
    "weighted_majority_at_k",
]
