import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # cases that files share


@pytest.fixture
def without_shape_checks():
    """Switch off the run-time types, which come before our own checks and break compilation."""
    jaxtyping.config.update("jaxtyping_disable", True)
    # All functions are compiled through one wrapper, and a limit counts the compilations of it.
    torch._dynamo.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
