"""Compile the kernels of divergences: ``python ahead_of_time_divergence.py some|all``.

As ``ahead_of_time.py`` does it for those of speculative decoding.
"""

import itertools
import json
import sys

import torch
from ahead_of_time import Compiler

from selftrain.kernels import divergence

ROWS, VOCAB = 64, 128256


def run(kind: str, grad_dtype: torch.dtype | None, softcap: float | None, measure: bool) -> None:
    """Call the operator once."""
    student = torch.empty(ROWS, VOCAB, device="meta")
    divergence.row_divergence(
        student,
        torch.empty_like(student),
        torch.empty(ROWS, device="meta"),
        kind=kind,
        parameter=0.3,
        factor=1.0,
        temperature=0.7,
        student_scale=1.0,
        student_softcap=softcap,
        teacher_scale=1.0,
        teacher_softcap=softcap,
        grad_dtype=grad_dtype,
        measure=measure,
    )


def main(extent: str) -> None:
    """Compile some variants or all."""
    compiler = Compiler()
    divergence.launch = compiler
    if extent == "all":
        dtypes = (torch.float32, torch.bfloat16, torch.float16)
        for arch, kind in itertools.product((80, 90), divergence.KINDS):
            compiler.arch = arch
            for dtype, softcap in itertools.product(dtypes, (None, 30.0)):
                run(kind, dtype, softcap, True)
            run(kind, None, None, False)
    else:
        compiler.arch = 90
        run("forward_kl", torch.bfloat16, 30.0, True)
        compiler.arch = 80
        run("jsd", torch.float16, None, False)
    print(json.dumps(list(compiler.found.values()), indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
