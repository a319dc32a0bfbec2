"""Triton forms of some ops: same arguments, same results, without temporaries over the vocabulary.

The modules with kernels import Triton; nothing imports them before a kernel is chosen to run.
"""
