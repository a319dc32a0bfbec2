import jaxtyping
import pytest
import torch


@pytest.fixture
def without_shape_checks():
    """Switch off the run-time types, which come before our own checks and break compilation."""
    jaxtyping.config.update("jaxtyping_disable", True)
    # All functions are compiled through one wrapper, and a limit counts the compilations of it.
    torch._dynamo.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
