"""Fine-tuning loops over a model and a data set."""

from selftrain.training.batch import TokenRow
from selftrain.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from selftrain.training.finetune import FinetuneConfig, finetune
from selftrain.training.loop import Report
from selftrain.training.optim import OptimConfig, build_optimizer, learning_rate_at
from selftrain.training.order import batch_indices

__all__ = [
    "Checkpoint",
    "FinetuneConfig",
    "OptimConfig",
    "Report",
    "TokenRow",
    "batch_indices",
    "build_optimizer",
    "finetune",
    "learning_rate_at",
    "load_checkpoint",
    "save_checkpoint",
]
