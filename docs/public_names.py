"""The public names of the package: one list for the reference pages and for the contract tests.

A name is public if a package lists it in ``__all__``. A module without ``__all__`` offers what it
defines without an underscore, and a package without ``__all__`` what its modules offer.
"""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import selftrain

# The command line has pages of its own, and kernels are reached through the ops they implement.
NOT_PAGES = {"cli", "kernels"}


@dataclass(frozen=True)
class PublicName:
    """One name as a user writes it, and what it stands for."""

    qualified: str
    value: Any

    @property
    def is_code(self) -> bool:
        """Whether it is a class or a function, not a constant or a type alias."""
        return isinstance(self.value, type) or inspect.isroutine(self.value)

    @property
    def directive(self) -> str:
        """The autodoc directive that documents it."""
        if isinstance(self.value, type):
            is_error = issubclass(self.value, BaseException)
            return "autoexception" if is_error else "autoclass"
        return "autofunction" if inspect.isroutine(self.value) else "autodata"


def pages() -> dict[str, list[PublicName]]:
    """Return the modules that have a reference page, each with its names."""
    found = {}
    for info in pkgutil.iter_modules(selftrain.__path__):
        if not info.name.startswith("_") and info.name not in NOT_PAGES:
            module = importlib.import_module(f"selftrain.{info.name}")
            found[module.__name__] = _names(module)
            known = {id(name.value) for name in found[module.__name__]}
            for inner in _listing_packages(module):
                names = [name for name in _names(inner) if id(name.value) not in known]
                found[inner.__name__] = names
    return found


def _listing_packages(module: ModuleType) -> list[ModuleType]:
    """Return the packages right inside ``module`` that list names of their own."""
    inner = [
        importlib.import_module(f"{module.__name__}.{info.name}")
        for info in pkgutil.iter_modules(getattr(module, "__path__", []))
        if info.ispkg and not info.name.startswith("_")
    ]
    return [package for package in inner if hasattr(package, "__all__")]


def top_level() -> list[PublicName]:
    """Return the names of ``selftrain.__all__`` that are not modules."""
    values = {name: getattr(selftrain, name) for name in sorted(selftrain.__all__)}
    return [
        PublicName(f"selftrain.{name}", value)
        for name, value in values.items()
        if not inspect.ismodule(value)
    ]


def documented_as(name: PublicName) -> str:
    """Return the qualified name under which a top-level name has its entry."""
    for names in pages().values():
        for other in names:
            if other.value is name.value:
                return other.qualified
    return name.qualified


def everything() -> list[PublicName]:
    """Return each public object once, under the name that its entry has."""
    inner = [name for names in pages().values() for name in names]
    seen = {id(name.value) for name in inner}
    return inner + [name for name in top_level() if id(name.value) not in seen]


def _names(module: ModuleType) -> list[PublicName]:
    listed = getattr(module, "__all__", None)
    if listed is not None:
        values = [(name, getattr(module, name)) for name in listed]
        return [
            PublicName(f"{module.__name__}.{name}", value)
            for name, value in values
            if not inspect.ismodule(value)
        ]
    found = [
        PublicName(f"{module.__name__}.{name}", value)
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if not info.name.startswith("_"):
            found += _names(importlib.import_module(f"{module.__name__}.{info.name}"))
    return found
