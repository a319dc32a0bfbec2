"""Compile every kernel for GPUs that are not there: ``python ahead_of_time.py some|all``.

A script of its own, since the kernels must be imported without TRITON_INTERPRET. The operators run
on tensors without data, and in the place of each launch stands a compilation with the arguments of
that launch, so that exactly what would run is compiled. Prints a JSON list, one entry a kernel
and variant, with what ptxas says of it.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from selftrain.kernels import best, rows, sample, threshold, verify

VOCAB = 128256
BATCH, DRAFTED = 4, 5
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"


class Compiler:
    """Stands in for ``launch``: compiles each new variant and notes what came out."""

    def __init__(self) -> None:
        self.arch = 0
        self.found: dict[str, dict] = {}

    def __call__(self, kernel):
        return _Grid(lambda **arguments: self.compile(kernel, arguments))

    def compile(self, kernel, arguments) -> None:
        options = {"num_warps": arguments.pop("num_warps")}
        signature, constants = {}, {}
        for parameter in kernel.params:
            value = arguments.pop(parameter.name)
            if parameter.is_constexpr:
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
            else:
                signature[parameter.name] = _type_of(value)
        assert not arguments, f"{kernel.__name__} does not take {list(arguments)}"
        written = (signature[name] for name in ("target", "grad", "logits") if name in signature)
        dtype = next(written, "")
        label = f"{kernel.__name__} sm_{self.arch} {dtype} {constants}"
        if label not in self.found:
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            target = GPUTarget("cuda", self.arch, 32)
            compiled = triton.compile(source, target=target, options=options)
            self.found[label] = {
                "kernel": label,
                "ptx": len(compiled.asm["ptx"]),
                "cubin": len(compiled.asm["cubin"]),
                "shared": compiled.metadata.shared,
                **_usage(compiled.asm["ptx"]),
            }


class _Grid:
    def __init__(self, run) -> None:
        self.run = run

    def __getitem__(self, _):
        return self.run


def _type_of(value) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _usage(ptx: str) -> dict[str, int]:
    """Return registers and bytes spilled, as ptxas reports them."""
    arch = re.search(r"\.target\s+(\w+)", ptx).group(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [PTXAS, "-v", f"--gpu-name={arch}", path, "-o", Path(folder) / "kernel.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", said).group(1)),
        "spilled": sum(int(n) for n in re.findall(r"(\d+) bytes spill", said)),
    }


NO_WARP, ALL_WARPS = (None, 1.0, 0.0), (20, 0.9, 0.05)
ONE_WARP = [(20, 1.0, 0.0), (None, 0.9, 0.0), (None, 1.0, 0.05)]
# Whether there are draft logits, whether whole prefixes are tested, whether the overlap is summed.
TOKEN, TOKEN_OVERLAP, BLOCK = (True, False, False), (True, False, True), (True, True, True)
TOKEN_ONE_HOT, BLOCK_ONE_HOT = (False, False, True), (False, True, True)
RULES = [TOKEN, TOKEN_OVERLAP, BLOCK, TOKEN_ONE_HOT, BLOCK_ONE_HOT]


def run(dtype: torch.dtype, warp: tuple, rules: list, *, per_row: bool = False) -> None:
    """Call every operator under one warp."""
    target = torch.empty(BATCH, DRAFTED + 1, VOCAB, dtype=dtype, device="meta")
    tokens = torch.empty(BATCH, DRAFTED, dtype=torch.int64, device="meta")
    seeds = torch.empty(BATCH, dtype=torch.int64, device="meta")
    temperatures = torch.empty(BATCH, dtype=torch.float32, device="meta") if per_row else None
    law = (1.0, temperatures, *warp)
    for has_draft, prefix, overlap in rules:
        draft = target[:, :-1] if has_draft else None
        verify.verify_sampled(target, draft, tokens, seeds, seeds, *law, prefix, overlap)
    sample.sample_rows(target[:, 0], seeds, seeds, 2, 0, *law)
    best.verify_best(target, tokens, seeds, seeds, *law, True)
    best.verify_best(target, tokens, seeds, seeds, *law, False)


def main(extent: str) -> None:
    """Compile some variants or all."""
    compiler = Compiler()
    for module in (rows, threshold, verify, sample, best):
        module.launch = compiler
    if extent == "all":
        for arch, dtype in itertools.product((80, 90), list(POINTERS)[:3]):
            compiler.arch = arch
            for warp in (NO_WARP, ALL_WARPS):
                run(dtype, warp, RULES)
                run(dtype, warp, [BLOCK], per_row=True)
            for warp in ONE_WARP:
                run(dtype, warp, [])
    else:
        compiler.arch = 90
        run(torch.bfloat16, ALL_WARPS, [BLOCK], per_row=True)
        compiler.arch = 80
        run(torch.float32, NO_WARP, [TOKEN, TOKEN_ONE_HOT])
    print(json.dumps(list(compiler.found.values()), indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
