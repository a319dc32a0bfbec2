"""Where Python and the shared libraries of the system lie: what a sandbox shows of our files."""

import os
import sys
import sysconfig

SCRATCH = "/scratch"
"""Where programs of level L2 may write: in a file system of its own, and not at a place that could
hide a library."""


def library_folders() -> list[str]:
    """Return the folders, or links to them, that Python needs to import its standard library."""
    standard = os.path.realpath(sysconfig.get_path("stdlib"))
    prefix = os.path.realpath(sys.base_prefix)
    own = [f"{prefix}/lib", f"{prefix}/lib64"] if prefix != "/" else []
    if not any(standard.startswith(f"{folder}/") for folder in own):
        own.append(standard)
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    found = [path for path in dict.fromkeys([*system, *own]) if os.path.isdir(path)]
    # A folder inside another one comes with it.
    return [p for p in found if not any(p != q and p.startswith(f"{q}/") for q in found)]


def package_folders() -> list[str]:
    """Return the folders of installed packages inside those, which programs do not see."""
    standard = os.path.realpath(sysconfig.get_path("stdlib"))
    parents = [standard, "/usr/lib/python3", f"{os.path.realpath(sys.base_prefix)}/lib/python3"]
    names = ("site-packages", "dist-packages")
    folders = [f"{parent}/{name}" for parent in dict.fromkeys(parents) for name in names]
    return [folder for folder in folders if os.path.isdir(folder)]
