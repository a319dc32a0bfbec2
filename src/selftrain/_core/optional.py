"""Optional dependencies: import them late, and say how to install them."""

import importlib
from types import ModuleType

from selftrain.errors import MissingExtraError


def require(module: str, *, extra: str) -> ModuleType:
    """Import and return ``module``.

    Raises:
        MissingExtraError: If it is not installed; the message names the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise  # it is installed, and something that it needs is broken
        raise MissingExtraError(
            f"this needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'selftrain[{extra}]'"
        ) from error
