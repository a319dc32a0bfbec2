"""Write the signatures of all public names to signatures.json.

Run it after a change of a public signature that is meant, and put the change in CHANGELOG.md:

    python tests/contracts/update_signatures.py
"""

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
SNAPSHOT = Path(__file__).with_name("signatures.json")


def signatures() -> dict[str, str]:
    """Return {qualified name: signature}, methods of classes included."""
    from public_names import everything

    found: dict[str, str] = {}
    for name in everything():
        if not name.is_code:
            found[name.qualified] = f" = {name.value!r}"
            continue
        found[name.qualified] = _signature(name.value)
        if isinstance(name.value, type):
            found.update(
                {f"{name.qualified}.{k}": v for k, v in sorted(_methods(name.value).items())}
            )
    return dict(sorted(found.items()))


def _methods(cls: type) -> dict[str, str]:
    found = {}
    for name, value in vars(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(value, property):
            found[name] = "property"
        elif isinstance(value, (staticmethod, classmethod)):
            found[name] = _signature(getattr(cls, name))
        elif inspect.isfunction(value):
            found[name] = _signature(value)
    return found


def _signature(value: Any) -> str:
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return "(...)"
    return re.sub(r" at 0x[0-9a-f]+", "", text)


if __name__ == "__main__":
    sys.path.insert(0, str(DOCS))
    SNAPSHOT.write_text(json.dumps(signatures(), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"wrote {SNAPSHOT.name}\n")
