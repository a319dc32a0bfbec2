"""Write the reference pages from the public names: one page a module, nothing by hand."""

from pathlib import Path

from public_names import PublicName, documented_as, pages, top_level


def write(folder: Path) -> None:
    """Write a page for every module into ``folder``; unchanged pages keep their time stamp."""
    folder.mkdir(parents=True, exist_ok=True)
    rendered = {f"{module}.md": text for module, text in render().items()}
    for stale in {path.name for path in folder.glob("*.md")} - set(rendered):
        (folder / stale).unlink()
    for name, text in rendered.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def render() -> dict[str, str]:
    """Return {module: text of its page}."""
    rendered = {module: _module_page(module, names) for module, names in pages().items()}
    return {"selftrain": _top_page(), **rendered}


def _top_page() -> str:
    """Return the page of the top level: a table, and entries for what has none elsewhere."""
    rows, entries = [], []
    for name in top_level():
        place = documented_as(name)
        summary = (name.value.__doc__ or "").strip().split("\n\n")[0]
        summary = " ".join(summary.split()).replace("|", "\\|").replace("``", "`")
        rows.append(f"| {{py:obj}}`{name.qualified} <{place}>` | {summary} |")
        if place == name.qualified:
            entries.append(_entry(name))
    table = "\n".join(["| name | what it is |", "|---|---|", *rows])
    return f"# selftrain\n\nThe names at the top of the package.\n\n{table}\n\n" + "\n".join(
        entries
    )


def _module_page(module: str, names: list[PublicName]) -> str:
    head = f"# {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n\n"
    return head + "\n".join(_entry(name) for name in names)


def _entry(name: PublicName) -> str:
    members = "" if name.directive in ("autofunction", "autodata") else "   :members:\n"
    return f"```{{eval-rst}}\n.. {name.directive}:: {name.qualified}\n{members}```\n"
