"""Self-training loops: ReST-EM, STaR, RFT and V-STaR over one store of samples."""

from selftrain.loops.candidates import BestOfK, CandidateScorer, score_samples
from selftrain.loops.config import EvaluationConfig, ImproveConfig, ReSTEMConfig
from selftrain.loops.evaluate import Evaluation, Measure, pass_rate, summarize
from selftrain.loops.exchange import export_prompts, import_completions
from selftrain.loops.export import (
    export_samples,
    load_samples,
    samples_dataset,
)
from selftrain.loops.generate import Draw, generate, grade
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
from selftrain.loops.rest_em import ReSTEM
from selftrain.loops.round import LoopResult, Round, RoundFiles
from selftrain.loops.rows import RowWriter
from selftrain.loops.sample import Sample, sample_seed
from selftrain.loops.select import Selection, select
from selftrain.loops.store import SampleStore
from selftrain.loops.verifier import Verifier
from selftrain.loops.verifier_report import VerifierReport, report_on
from selftrain.loops.vstar import VSTaR, VSTaRConfig, VSTaRResult

__all__ = [
    "AnswerGroups",
    "Answers",
    "BestOfK",
    "CandidateScorer",
    "Draw",
    "Evaluation",
    "EvaluationConfig",
    "ImproveConfig",
    "LoopResult",
    "Measure",
    "OutcomeRewardConfig",
    "OutcomeRewardModel",
    "ReSTEM",
    "ReSTEMConfig",
    "Round",
    "RoundFiles",
    "RowWriter",
    "Sample",
    "SampleStore",
    "Selection",
    "VSTaR",
    "VSTaRConfig",
    "VSTaRResult",
    "Verifier",
    "VerifierReport",
    "answer_groups",
    "export_prompts",
    "export_samples",
    "generate",
    "grade",
    "import_completions",
    "load_groups",
    "load_samples",
    "outcome_rows",
    "pass_rate",
    "report_on",
    "sample_seed",
    "samples_dataset",
    "save_groups",
    "score_samples",
    "select",
    "summarize",
    "train_outcome_reward",
    "with_reference",
]
