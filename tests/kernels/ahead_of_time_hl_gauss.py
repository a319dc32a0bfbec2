"""Compile the kernels of HL-Gauss: ``python ahead_of_time_hl_gauss.py some|all``.

As ``ahead_of_time.py`` does it for those of speculative decoding.
"""

import itertools
import json
import sys

import torch
from ahead_of_time import Compiler

from selftrain.kernels import hl_gauss

ROWS = 64


def run(dtype: torch.dtype, num_bins: int) -> None:
    """Call both operators once."""
    logits = torch.empty(ROWS, num_bins, dtype=dtype, device="meta")
    values = torch.empty(ROWS, device="meta")
    centers = torch.empty(num_bins, device="meta")
    hl_gauss.hl_gauss_forward(logits, values, centers, centers, 0.0, 1.0, 1.0)
    hl_gauss.hl_gauss_backward(logits, values, centers, centers, values, values, 0.0, 1.0, 1.0)


def main(extent: str) -> None:
    """Compile some variants or all."""
    compiler = Compiler()
    hl_gauss.launch = compiler
    if extent == "all":
        dtypes = (torch.float32, torch.bfloat16, torch.float16)
        for arch, dtype, num_bins in itertools.product((80, 90), dtypes, (51, 101, 1001)):
            compiler.arch = arch
            run(dtype, num_bins)
    else:
        for arch, dtype in ((90, torch.bfloat16), (80, torch.float32)):
            compiler.arch = arch
            run(dtype, 101)
    print(json.dumps(list(compiler.found.values()), indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
