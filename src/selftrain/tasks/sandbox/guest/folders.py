"""Empties folders that a program has written into, however it did that."""

import os


def empty(folder: str) -> None:
    """Remove everything inside ``folder`` without recursion and without following links.

    Folders are emptied by moving the folders inside them up to the top first, so that neither the
    depth of a tree nor the length of its paths matters.
    """
    with os.scandir(folder) as entries:
        todo = [entry.name for entry in entries]
    number = 0
    while todo:
        path = os.path.join(folder, todo.pop())
        if os.path.islink(path) or not os.path.isdir(path):
            os.unlink(path)
            continue
        os.chmod(path, 0o700)
        with os.scandir(path) as entries:
            inside = list(entries)
        for entry in inside:
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)  # a folder that cannot be written cannot be moved
                while os.path.lexists(os.path.join(folder, f"_{number}")):
                    number += 1
                os.rename(entry.path, os.path.join(folder, f"_{number}"))
                todo.append(f"_{number}")
            else:
                os.unlink(entry.path)
        os.rmdir(path)
