"""Rows of measurements as Markdown tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from selftrain.bench.decoders import PEER_ASSISTED, PEER_PLAIN, PLAIN, SPECULATIVE
from selftrain.bench.harness import environment_line, table

_NONE = "–"
_NOTHING = (None, None, None)


def case_label(case: Mapping[str, Any]) -> str:
    """Return a case in a few words."""
    law = "greedy" if case["temperature"] == 0 else f"T={case['temperature']:g}"
    words = [short_dtype(case["dtype"]), law, f"g={case['num_draft_tokens']}"]
    if case["batch_size"] > 1:
        words.append(f"batch {case['batch_size']}")
    if case["verifier"] != "default" and case["temperature"]:
        words.append(case["verifier"])
    return ", ".join(words)


def short_dtype(name: str) -> str:
    """Return "fp32" for "float32", "bf16" for "bfloat16"."""
    return name.replace("bfloat", "bf").replace("float", "fp")


def summary_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Return what a row says in columns that fit a terminal: our speed, and our gains."""
    mine = row["methods"][SPECULATIVE]
    titles = {PLAIN: "x plain", PEER_PLAIN: "x tf", PEER_ASSISTED: "x assisted"}
    return {
        "tok/s": f"{mine['tokens_per_second'][1]:.0f}",
        **{title: _number(mine["over"].get(name, _NOTHING)[1]) for name, title in titles.items()},
        "tok/call": f"{mine['block_efficiency']:.2f}",
        "ceiling": _share(mine.get("share_of_ceiling")),
    }


def speed_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Return what a row says of speed, by column; a dash where it says nothing."""
    methods = row["methods"]
    mine = methods[SPECULATIVE]
    cells = {
        "tok/s": _rate(methods, SPECULATIVE),
        "own plain": _rate(methods, PLAIN),
        "transformers plain": _rate(methods, PEER_PLAIN),
        "assisted": _rate(methods, PEER_ASSISTED),
    }
    for base, title in ((PLAIN, "x own plain"), (PEER_ASSISTED, "x assisted")):
        cells[title] = _number(mine["over"].get(base, _NOTHING)[1])
    for name in methods:
        if name.startswith(f"{SPECULATIVE}, "):
            forward = name.removeprefix(f"{SPECULATIVE}, ")
            cells[f"{forward} tok/s"] = _rate(methods, name)
            over = methods[name]["over"].get(PEER_ASSISTED, _NOTHING)[1]
            cells[f"{forward} x assisted"] = _number(over)
    return cells


def model_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Return what a row says of the cost model, by column; a dash where it says nothing."""
    methods = row["methods"]
    mine, costs = methods[SPECULATIVE], row.get("costs", {})
    predicted = row.get("prediction", {})
    peer = methods.get(PEER_ASSISTED, {}).get("block_efficiency")
    times = [costs.get(part) for part in ("draft_step", "target_one", "target_block")]
    rate = row["acceptance"]
    names = ("analytic_acceptance", "acceptance_rate", "accepted_fraction")
    return {
        "block efficiency (peer)": f"{mine['block_efficiency']:.2f} ({_number(peer)})",
        "acceptance: analytic / of tested / of drafted": " / ".join(
            _number(rate[name], 3) for name in names
        ),
        "T_d / T_1 / T_{g+1} ms": " / ".join(_number(t) for t in times),
        "T_verify ms": _number(costs.get("verify")),
        "ceiling tok/s": _number(predicted.get("ceiling_tokens_per_second"), 0),
        "share of ceiling": _share(mine.get("share_of_ceiling")),
        "after the first token": _share(mine.get("share_after_first_token")),
        "speed-up predicted (with T_verify)": (
            f"{_number(predicted.get('speedup'))} ({_number(predicted.get('speedup_with_verify'))})"
        ),
        "measured": _number(mine["over"][PLAIN][1]),
    }


def case_table(
    labels: Sequence[Sequence[str]],
    heads: Sequence[str],
    cells: Sequence[Mapping[str, str]],
) -> str:
    """Return a table of one line per case: its labels, then its cells, blanks where one lacks."""
    columns = list(dict.fromkeys(name for line in cells for name in line))
    lines = [
        [*label, *(line.get(column, _NONE) for column in columns)]
        for label, line in zip(labels, cells, strict=True)
    ]
    return table([*heads, *columns], lines)


def sweep_page(
    title: str, rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]
) -> str:
    """Return the Markdown page of a sweep."""
    labels = [[case_label(row["case"])] for row in rows]
    case = rows[0]["case"]
    parts = [
        f"*{title}; {environment_line(dict(environment))}; {case['max_new_tokens']} new tokens "
        f"after {case['prompt_tokens']}, medians of {case['repeats']} interleaved rounds "
        "(quartiles in brackets), the prompts' forward included.*",
        case_table(labels, ["case"], [speed_cells(row) for row in rows]),
        "What the models' bare forwards allow at the measured block efficiency, and what came of "
        "it:",
        case_table(labels, ["case"], [model_cells(row) for row in rows]),
    ]
    if any(method["peak_bytes"] for row in rows for method in row["methods"].values()):
        memory = [
            {name: _mebibytes(m["peak_bytes"]) for name, m in row["methods"].items()}
            for row in rows
        ]
        parts += ["Peak memory, MiB:", case_table(labels, ["case"], memory)]
    return "\n\n".join(parts) + "\n"


def _rate(methods: Mapping[str, Any], name: str) -> str:
    if name not in methods:
        return _NONE
    low, middle, high = methods[name]["tokens_per_second"]
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def _number(value: float | None, decimals: int = 2) -> str:
    return _NONE if value is None else f"{value:.{decimals}f}"


def _share(values: Sequence[float] | None) -> str:
    return _NONE if values is None else f"{values[1]:.0%}"


def _mebibytes(value: int | None) -> str:
    return _NONE if value is None else f"{value / 2**20:.0f}"
