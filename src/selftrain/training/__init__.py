"""Fine-tuning and preference loops over a model and a data set."""

from selftrain.training.batch import TokenRow
from selftrain.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from selftrain.training.finetune import FinetuneConfig, finetune
from selftrain.training.log_probs import sequence_log_probs
from selftrain.training.loop import Report
from selftrain.training.optim import OptimConfig, build_optimizer, learning_rate_at
from selftrain.training.order import batch_indices
from selftrain.training.preference import PreferenceConfig, train_preferences
from selftrain.training.preference_loss import PreferenceGroup, dpo_loss
from selftrain.training.snapshot import weights_fingerprint

__all__ = [
    "Checkpoint",
    "FinetuneConfig",
    "OptimConfig",
    "PreferenceConfig",
    "PreferenceGroup",
    "Report",
    "TokenRow",
    "batch_indices",
    "build_optimizer",
    "dpo_loss",
    "finetune",
    "learning_rate_at",
    "load_checkpoint",
    "save_checkpoint",
    "sequence_log_probs",
    "train_preferences",
    "weights_fingerprint",
]
