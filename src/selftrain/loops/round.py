"""What came of a round, and where its files lie."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from selftrain._core.io import read_json, write_json
from selftrain.loops.evaluate import Evaluation

_FILE = "metrics.json"


@dataclass(frozen=True, slots=True)
class RoundFiles:
    """The places of a round's files, all in one folder."""

    folder: Path
    """``<run>/rounds/000``, or ``<run>/start`` for the model before the first round."""

    @property
    def samples(self) -> Path:
        """The store of what was sampled and graded."""
        return self.folder / "samples"

    @property
    def hinted(self) -> Path:
        """The store of second attempts, with a hint."""
        return self.folder / "hinted"

    @property
    def chosen(self) -> Path:
        """The keys of the samples that may be selected; where it is missing, all may."""
        return self.folder / "chosen.json"

    @property
    def rows(self) -> Path:
        """The training set made of them."""
        return self.folder / "train.jsonl"

    @property
    def training(self) -> Path:
        """Checkpoints and metrics of the training."""
        return self.folder / "training"

    @property
    def model(self) -> Path:
        """The trained model, as ``from_pretrained`` reads it."""
        return self.folder / "model"

    def evaluation(self, task: str) -> Path:
        """Return the folder with the samples that the model was measured by."""
        return self.folder / "evaluation" / task

    @property
    def metrics(self) -> Path:
        """What came of the round; where it exists, the round is over."""
        return self.folder / _FILE


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What came of one round."""

    number: int
    """From 0; -1 for the model before the first round."""
    num_samples: int
    """Samples drawn."""
    pass_fraction: float
    """Mean score of those that could be judged."""
    solved_fraction: float
    """Problems with at least one sample that was good enough to train on."""
    num_selected: int
    """Rows trained on."""
    selection: dict[str, int]
    """Counts of what was kept and left out, by reason."""
    false_positive_fraction: float | None
    """Of the selected samples, those that the task's stricter grader refuses; None where there is
    none, or where nothing was selected."""
    evaluations: dict[str, Evaluation]
    """By name: "validation", "train" and, if there is one, "test"."""
    folder: Path
    """Where its files lie."""
    seconds: dict[str, float]
    """Time taken by step, in the process that finished the round."""

    @property
    def validation(self) -> float:
        """Greedy pass@1 on the validation problems."""
        return self.evaluations["validation"].greedy.mean

    def save(self) -> None:
        """Write it to its folder, which marks the round as over."""
        row: dict[str, Any] = asdict(self)
        row.pop("folder")
        row["evaluations"] = {name: e.to_row() for name, e in self.evaluations.items()}
        write_json(RoundFiles(self.folder).metrics, row)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Return the round in ``folder``; None if it is not over."""
        path = RoundFiles(folder).metrics
        if not path.exists():
            return None
        row = read_json(path)
        row["evaluations"] = {n: Evaluation.from_row(e) for n, e in row["evaluations"].items()}
        return cls(**row, folder=folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopResult:
    """The outcome of a self-training loop."""

    start: Round
    """The model before the first round, measured."""
    rounds: tuple[Round, ...]
    """Those that were finished, in order."""
    best: Round
    """The one with the best validation score, the start included; the model has its weights, and a
    server those it was told of last."""
    stopped: str
    """Why there was no further round."""
