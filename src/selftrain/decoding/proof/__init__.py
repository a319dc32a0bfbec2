"""Proofs of exactness."""

from selftrain.decoding.proof.enumeration import *
