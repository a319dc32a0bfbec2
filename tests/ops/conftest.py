import jaxtyping
import pytest


@pytest.fixture
def without_shape_checks():
    """Switch off the run-time types, which come before our own checks and break compilation."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
