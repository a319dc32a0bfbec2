import sys
from pathlib import Path

import pytest
import torch

# pytest's import mode puts this folder on the path anyway; the worker scripts rely on it as well.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def student(make_llama):
    return make_llama(seed=0)


@pytest.fixture
def teacher(make_llama):
    """A frozen model with opinions: its logits have a standard deviation of about one."""
    model = make_llama(seed=1, num_hidden_layers=3)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(8.0)
    return model.requires_grad_(False)
