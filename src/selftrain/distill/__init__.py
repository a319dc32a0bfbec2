"""On-policy distillation: a student learns from a teacher on text it writes itself."""

from selftrain.distill.config import DistillConfig
from selftrain.distill.distiller import Distiller
from selftrain.distill.draft_quality import (
    CurvePoint,
    DraftEvaluator,
    DraftQuality,
    draft_quality,
)
from selftrain.distill.drafts import forced_acceptance, measure_draft, target_texts
from selftrain.training.loop import Report as DistillReport

__all__ = [
    "CurvePoint",
    "DistillConfig",
    "DistillReport",
    "Distiller",
    "DraftEvaluator",
    "DraftQuality",
    "draft_quality",
    "forced_acceptance",
    "measure_draft",
    "target_texts",
]
