"""How a sampler outside this process is told of new weights."""

from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class WeightSync(Protocol):
    """A sampler that has to be told of new weights, such as a server."""

    def load_weights(self, path: Path) -> None:
        """Sample with the weights in the folder from now on."""
        ...
