"""The shipped suite of relations and exact calls on our own kernels: the same file that runs on anybody's."""

from minimax_m2.harness.conformance_relations import *  # noqa: F403
