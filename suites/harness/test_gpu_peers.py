"""What peers of a GPU are given beforehand: pages gathered, lengths planned, and never a plan of other lengths."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.cuda_graph import captured, on_a_stream
from minimax_m2.harness.judge import on_device
from minimax_m2.harness.judged_rows import judged
from minimax_m2.harness.op import find_op
from minimax_m2.harness.peers import absence, can, on_gpu
from minimax_m2.harness.providers import flashinfer_attention, prepared, sdpa
from minimax_m2.harness.verdict import Outcome
from minimax_m2.reference.attention import attention, paged

OP = find_op("attention")
M2: dict[str, Field] = {"Hk": 2, "group": 6, "D": 128, "page": 16, "queries": "one"}


def drawn(case: Case) -> dict[str, Any]:
    return OP.inputs(case, Bits(case))


def test_a_call_outside_a_graph_prepares_anew_and_one_inside_takes_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: prepared.Prepared[int] = prepared.Prepared()
    numbers, key = iter(range(9)), torch.zeros(1)
    assert [kept.of(key, lambda: next(numbers)) for _ in range(2)] == [0, 1]
    monkeypatch.setattr(prepared, "_capturing", lambda: True)
    assert kept.of(key, lambda: next(numbers)) == 1
    with pytest.raises(RuntimeError, match="lengths are read on the host: call once with these tensors before"):
        kept.of(torch.zeros(1), lambda: next(numbers))


def test_pages_are_gathered_in_their_order() -> None:
    given = drawn(OP.case(B=1, S=33, **M2))
    k, v = sdpa.gathered(given["k_cache"], given["v_cache"], given["block_table"], given["seq_lens"])
    for found, cache in ((k, given["k_cache"]), (v, given["v_cache"])):
        assert found.shape == (1, 2, 33, 128)
        assert torch.equal(found[0], paged(cache, given["block_table"][0], 33, None))


class Engine:
    """Keeps what a wrapper is planned with, and computes by the reference."""

    def __init__(self) -> None:
        self.decode = SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=self.made("decode"))
        self.prefill = SimpleNamespace(BatchPrefillWithPagedKVCacheWrapper=self.made("prefill"))
        self.kind = ""
        self.plan_of: list[Any] = []

    def made(self, kind: str) -> Any:
        def build(*given: Any) -> Engine:
            self.kind = kind
            return self

        return build

    def plan(self, *plan: Any, **more: Any) -> None:
        self.plan_of = list(plan)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashinfer_attention, "WORKSPACE_BYTES", 16)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("queries, kind", [("one", "decode"), ("all", "prefill")])
def test_a_plan_names_the_pages_of_each_sequence(queries: str, kind: str) -> None:
    given, engine = drawn(OP.case(B=3, S=33, seed=5, **M2 | {"queries": queries})), Engine()
    lengths, starts = given["seq_lens"].tolist(), given["query_start"].tolist()
    flashinfer_attention.planned(
        engine, given["q"], given["k_cache"], given["block_table"], lengths, starts, given["scale"]
    )
    assert engine.kind == kind
    first = 0 if kind == "decode" else 1
    indptr, indices, last = engine.plan_of[first : first + 3]
    assert lengths == [16 * (end - begin - 1) + rest if end > begin else 0 for begin, end, rest in zip(
        indptr.tolist(), indptr.tolist()[1:], last.tolist(), strict=False)]  # fmt: skip
    for b, (begin, end) in enumerate(zip(indptr.tolist(), indptr.tolist()[1:], strict=False)):
        assert torch.equal(indices[begin:end], given["block_table"][b, : end - begin])
    assert engine.plan_of[-4:] == [12, 2, 128, 16]
    if kind == "prefill":
        assert engine.plan_of[0].tolist() == starts


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["flashinfer", "flashinfer-xqa", "sdpa-cudnn", "sdpa-flash"])
def test_a_graph_of_a_planned_call_reads_the_queries_of_its_replay(name: str) -> None:
    if (reason := absence(name)) is not None:
        pytest.skip(f"{name} is not here: {reason}")
    case = next(iter(can(name).fitting(OP, 1))).but(S=33)
    provider = on_gpu(name)
    given = {field: on_device(value, provider) for field, value in drawn(case).items()}
    call = OP.bind(provider.functions("attention") or attention, given)
    on_a_stream(call)
    graph, returned = captured(call)
    given["q"].neg_()
    graph.replay()
    outcome, evidence, _ = judged(OP, case, provider.contract["attention"], given, (returned,))
    assert outcome is Outcome.PASS, evidence
