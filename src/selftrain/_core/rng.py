"""Independent random sources from one seed.

A seed for a purpose is a pure function of the run's seed and the purpose's name and counters
(``derive(seed, "batch", step)``), so nothing has to be saved to resume a run exactly, and the
number of processes does not change what is drawn.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *path: int | str) -> int:
    """Return a 63-bit seed for the purpose named by ``path``; different paths are independent."""
    text = repr((seed, *path))  # quotes strings, so that no two paths read the same
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def split(seed: int, num: int) -> list[int]:
    """Return ``num`` independent seeds."""
    return [derive(seed, "split", i) for i in range(num)]


def torch_generator(seed: int, *path: int | str) -> "torch.Generator":
    """Return a CPU ``torch.Generator`` seeded by :func:`derive`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *path))


@contextlib.contextmanager
def seeded_torch(seed: int, *path: int | str) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it.

    Only for code that takes no generator (dropout, weight initialisation).
    """
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive(seed, *path))
        yield
