"""The shipped conformance suite, run on our own kernels."""

from minimax_m2.harness.conformance import *  # noqa: F403
