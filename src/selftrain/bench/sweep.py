"""``selftrain bench specdec``: a sweep over cases, continued where it stopped."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedModel

from selftrain._core.checks import check_choice, check_int, check_not_empty, check_range
from selftrain._core.config import to_dict
from selftrain._core.io import (
    append_jsonl,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)
from selftrain._core.logging import progress
from selftrain._core.run import open_run
from selftrain.bench.decoders import NumDraftTokens, VerifierName
from selftrain.bench.figure import sweep_figure
from selftrain.bench.memory import peak_memory
from selftrain.bench.pages import sweep_page
from selftrain.bench.pair import FORWARDS, Pair
from selftrain.bench.specdec import Case, decoders_of, measure_case
from selftrain.bench.synthetic import PAIRS, synthetic_pair
from selftrain.bench.timing import pinned_threads
from selftrain.plots import save_figure
from selftrain.training.pretrained import load_pretrained

DType = Literal["float64", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecdecConfig:
    """What to measure: every combination of the lists is a case."""

    pair: str = "small"
    """A synthetic pair: tiny, small or large for CPUs, 8b for a GPU. Not used with target and
    draft."""
    target: str | None = None
    """Target model: a folder or a name on the hub."""
    draft: str | None = None
    """Draft model, likewise."""
    damping: float = 0.02
    """How much the layers count that a synthetic draft lacks: 0.02 is accepted nearly always,
    1 rarely."""
    batch_sizes: tuple[int, ...] = (1,)
    """Prompts decoded together; more than one are of different lengths."""
    num_draft_tokens: tuple[int | Literal["auto"], ...] = ()
    """Tokens drafted per block; auto leaves it to the planner. Empty: what suits the pair."""
    temperatures: tuple[float, ...] = (0.0, 1.0)
    """0 is greedy."""
    verifiers: tuple[VerifierName, ...] = ("default",)
    """Rules of acceptance of our decoder; they differ only at temperatures above 0."""
    dtypes: tuple[DType, ...] = ("float32",)
    """Of both models."""
    forward: tuple[str, ...] = ("eager",)
    """How our decoders do the models' forwards, all in the same run; eager is always among them."""
    device: str = "cpu"
    """Of both models: cpu, cuda, cuda:1, ..."""
    max_new_tokens: int = 128
    """New tokens of every row; nothing ends a text early."""
    prompt_tokens: int = 32
    """Length of the longest prompt; the ids are random."""
    repeats: int = 5
    """Timed rounds, each with other prompts, after one to warm up."""
    threads: int | None = None
    """Torch's threads on CPUs; default: as many as torch takes."""
    peers: bool = True
    """Measure transformers' plain and assisted generation too."""
    memory: bool = False
    """On CPUs: also measure each decoder's peak memory, in a process of its own."""
    seed: int = 0
    """Of synthetic weights, prompts and noise."""

    def __post_init__(self) -> None:
        if (self.target is None) != (self.draft is None):
            raise ValueError("target and draft go together; one was given without the other.")
        if self.target is None:
            check_choice("pair", self.pair, PAIRS)
        check_range("damping", self.damping, low=0.0)
        for name in ("batch_sizes", "temperatures", "verifiers", "dtypes"):
            check_not_empty(name, getattr(self, name))
        for size in self.batch_sizes:
            check_int("batch_sizes", size, low=1)
        for num in self.num_draft_tokens:
            if num != "auto":
                check_int("num_draft_tokens", num, low=1)
        for temperature in self.temperatures:
            check_range("temperatures", temperature, low=0.0)
        for name, known in (("verifiers", get_args(VerifierName)), ("dtypes", get_args(DType))):
            for value in getattr(self, name):
                check_choice(name, value, known)
        for value in self.forward:
            check_choice("forward", value, FORWARDS)
        for name in ("max_new_tokens", "prompt_tokens", "repeats"):
            check_int(name, getattr(self, name), low=1)
        if self.threads is not None:
            check_int("threads", self.threads, low=1)

    @classmethod
    def quick(cls) -> "SpecdecConfig":
        """Return the settings of a run of some seconds."""
        return cls(pair="tiny", max_new_tokens=24, prompt_tokens=8, repeats=2)

    @property
    def title(self) -> str:
        """The pair in a few words."""
        if self.target is not None:
            return f"{self.target} with {self.draft}"
        shape = PAIRS[self.pair]
        return (
            f"synthetic pair {self.pair} ({shape.num_layers} and {shape.draft_layers} layers, "
            f"d={shape.hidden_size}, V={shape.vocab_size}, damping {self.damping:g})"
        )

    def cases(self) -> Iterator[tuple[DType, Case]]:
        """Yield every case with its dtype; at temperature 0 the verifiers are one and the same."""
        default = PAIRS[self.pair].num_draft_tokens if self.target is None else 5
        numbers: tuple[NumDraftTokens, ...] = self.num_draft_tokens or (default,)
        for dtype, batch_size, num, temperature in itertools.product(
            self.dtypes, self.batch_sizes, numbers, self.temperatures
        ):
            for verifier in self.verifiers if temperature else self.verifiers[:1]:
                yield (
                    dtype,
                    Case(
                        num_draft_tokens=num,
                        temperature=temperature,
                        batch_size=batch_size,
                        verifier=verifier,
                        max_new_tokens=self.max_new_tokens,
                        prompt_tokens=self.prompt_tokens,
                        repeats=self.repeats,
                        seed=self.seed,
                    ),
                )

    def load(self, dtype: DType) -> Pair:
        """Return target and draft, with our decoders of them.

        Raises:
            ValueError: If the device is not there or a model cannot be loaded.
        """
        device, torch_dtype = _device(self.device), getattr(torch, dtype)
        if self.target is None or self.draft is None:
            models = synthetic_pair(
                self.pair, damping=self.damping, dtype=torch_dtype, device=device, seed=self.seed
            )
            return Pair(*models, forwards=self.forward)
        target, draft = (_loaded(name, torch_dtype, device) for name in (self.target, self.draft))
        return Pair(target, draft, forwards=self.forward)


def run_sweep(
    config: SpecdecConfig,
    folder: Path,
    *,
    show_progress: bool = True,
) -> list[dict[str, Any]]:
    """Measure every case that ``folder`` does not hold yet; write rows, table and picture.

    Args:
        config: What to measure.
        folder: Gets ``config.json``, ``manifest.json``, ``rows.jsonl`` (one row as soon as it is
            measured), ``results.json``, ``table.md`` and ``speed.png``.
        show_progress: Whether to show a bar.

    Returns:
        All rows, in the order of :meth:`SpecdecConfig.cases`.

    Raises:
        RunConflictError: If the folder holds measurements of another configuration.
        ValueError: If the device is not there or a model cannot be loaded.
    """
    with pinned_threads(config.threads) as threads:
        _device(config.device)
        open_run(folder, config, seed=config.seed)
        path = folder / "rows.jsonl"
        found = {_key(row["case"]): row for row in read_jsonl(path)}
        write_jsonl(path, found.values())  # drops a row that a crash cut off
        cases = [({"dtype": dtype, **asdict(case)}, dtype, case) for dtype, case in config.cases()]
        todo = [entry for entry in cases if _key(entry[0]) not in found]
        pairs: dict[str, Pair] = {}
        with progress(
            "measure", len(cases), done=len(cases) - len(todo), show=show_progress
        ) as bar:
            for number, (key, dtype, case) in enumerate(todo, len(cases) - len(todo)):
                if dtype not in pairs:
                    pairs = {}  # one pair in memory at a time
                    pairs[dtype] = config.load(dtype)
                row = measure_case(
                    case,
                    pairs[dtype],
                    peers=config.peers,
                    report=lambda turn, name, n=number: bar.update(n, f"{name}, {turn + 1}"),
                )
                row = {"case": key, "threads": threads, **row}
                if config.memory:
                    _add_memory(config, dtype, case, row)
                append_jsonl(path, row)
                found[_key(key)] = row
                bar.update(number + 1)
        rows = [found[_key(key)] for key, _, _ in cases]
    _write(config, folder, rows)
    return rows


def _write(config: SpecdecConfig, folder: Path, rows: list[dict[str, Any]]) -> None:
    environment = read_json(folder / "manifest.json")
    environment["num_threads"] = rows[0]["threads"]
    data = {"environment": environment, "config": to_dict(config), "rows": rows}
    write_json(folder / "results.json", data)
    write_text(folder / "table.md", sweep_page(config.title, rows, environment))
    save_figure(sweep_figure(config.title, rows), folder / "speed.png")


def _add_memory(config: SpecdecConfig, dtype: DType, case: Case, row: dict[str, Any]) -> None:
    for name, method in row["methods"].items():
        if method["peak_bytes"] is None:
            method["peak_bytes"] = peak_memory(_decode_once, config, dtype, case, name)


def _decode_once(config: SpecdecConfig, dtype: DType, case: Case, name: str) -> None:
    """Decode one round with one decoder; for a process of its own."""
    with pinned_threads(config.threads):
        pair = config.load(dtype)
        decoders_of(case, pair)[name](case.prompts(0, pair.vocab_size), case.params(0))


def _key(case: dict[str, Any]) -> str:
    return repr(sorted(case.items()))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}") from error
    return device


def _loaded(name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    model = load_pretrained(name, dtype=dtype).eval().requires_grad_(False)
    return model.to(device)  # pyrefly: ignore[bad-argument-type]
