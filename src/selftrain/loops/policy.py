"""The model that a loop trains: whose weights it has, and that its sampler has the same."""

from pathlib import Path

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain.decoding.sampler import HFSampler, Sampler
from selftrain.decoding.weights import WeightSync
from selftrain.training.pretrained import load_weights, save_model
from selftrain.training.snapshot import Snapshot


class Policy:
    """A model in this process, its first weights, and what samples from it.

    Args:
        model: The model, with its first weights.
        tokenizer: Its tokenizer.
        accelerator: The process layer; the model moves to its device.
        sampler: Samples from the model somewhere else; None: in process. With ``load_weights``
            (:class:`selftrain.decoding.WeightSync`) it is told of new weights.
        batch_size: Rows decoded together in process.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        *,
        sampler: Sampler | None,
        batch_size: int,
    ) -> None:
        self.model, self.tokenizer, self.accelerator = model, tokenizer, accelerator
        model.to(accelerator.device)  # pyrefly: ignore[bad-argument-type]
        self.base = Snapshot.take(model)
        """The first weights."""
        self.local = HFSampler(model, tokenizer, batch_size=batch_size)
        """Samples in process, from the weights of the moment."""
        self.sampler: Sampler = sampler or self.local
        """Samples from the weights that were loaded last."""
        self._held: Path | str = "base"
        self._sent: Path | str = "base"

    def load(self, folder: Path | None) -> None:
        """Give model and sampler the weights in ``folder``, or the first ones if it is None.

        All processes call it together.
        """
        self.hold(folder)
        if not isinstance(self.sampler, WeightSync) or self._sent == self._held:
            return
        if folder is None:
            raise ValueError(
                "the sampler was told of newer weights and cannot be given the first ones again; "
                "start its server anew and continue the run."
            )
        if self.accelerator.is_main_process:
            self.sampler.load_weights(folder)
        self.accelerator.wait_for_everyone()
        self._sent = folder

    def start_training(self, folder: Path | None) -> None:
        """Give the model the weights in ``folder`` (None: the first ones), to be changed."""
        self.hold(folder)
        self._held = ""

    def save(self, folder: Path) -> None:
        """Write model and tokenizer as ``from_pretrained`` reads them; the main process does."""
        if self.accelerator.is_main_process:
            save_model(self.model, self.tokenizer, folder)
        self.accelerator.wait_for_everyone()
        self._held = folder

    def fingerprint(self) -> str:
        """Return a fingerprint of the trainable weights of the moment."""
        return Snapshot.take(self.model).fingerprint()

    def hold(self, folder: Path | None) -> None:
        """Give the model, not an outside sampler, the weights in ``folder`` (None: the first ones).

        Raises:
            ValueError: If there are no weights in the folder.
        """
        source = "base" if folder is None else folder
        if self._held == source:
            return
        if folder is None:
            self.base.restore(self.model)
        elif folder.exists():
            load_weights(self.model, folder)
        else:
            raise ValueError(
                f"{folder} does not exist: the weights wanted are those that an earlier round has "
                "still to train; call its improve first."
            )
        self._held = source
