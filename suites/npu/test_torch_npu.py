"""Level N4: our calls of torch_npu's fused operators meet the schemas of its wheels, and do what the reference does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from minimax_m2.harness.npu.on_fake_device import in_own_process
from minimax_m2.harness.npu.torch_npu_emulated import EMULATED
from minimax_m2.harness.npu.torch_npu_schemas import OPERATORS, releases, schemas
from minimax_m2.harness.providers.torch_npu import FUNCTIONS

pytest.importorskip("triton", reason="Triton is not installed; our kernels cannot be imported")
pytestmark = pytest.mark.npu

CASES = 8
OPS = [name for name in FUNCTIONS if not name.startswith("pack_")]
# The newest, and that of the host that docs/npu.md describes.
RELEASES = ["2.13.0", "2.7.1"]


def arguments(release: str, operator: str) -> list[str]:
    return [argument.name for argument in torch._C.parse_schema(schemas(release)[operator]).arguments]


@pytest.mark.parametrize("release", RELEASES)
def test_every_operator_has_a_schema_that_torch_reads(release: str) -> None:
    assert releases() == tuple(RELEASES)
    assert [len(arguments(release, operator)) > 0 for operator in OPERATORS] == [True] * len(OPERATORS)
    assert set(EMULATED) < set(OPERATORS)


def test_releases_differ_where_the_page_says_so() -> None:
    newer, older = ({name: set(arguments(release, name)) for name in OPERATORS} for release in RELEASES)
    assert newer["npu_scatter_pa_kv_cache"] - older["npu_scatter_pa_kv_cache"] == {"cache_mode"}
    assert newer["npu_moe_finalize_routing"] - older["npu_moe_finalize_routing"] == {"k"}
    assert newer["npu_moe_gating_top_k"] - older["npu_moe_gating_top_k"] == {"input_ids", "tid2eid"}
    assert [name for name in OPERATORS if older[name] - newer[name]] == []


def test_a_release_that_is_not_kept_is_refused() -> None:
    with pytest.raises(ValueError, match=r"release '1.11' of torch_npu is not kept; use one of 2.13.0, 2.7.1"):
        schemas("1.11")


@pytest.fixture(scope="module", params=RELEASES)
def judged(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """The operators under a release's schemas, judged on the fake device, by op."""
    given = ("ops", *OPS, "--cases", str(CASES), "--torch-npu", request.param)
    return {found["op"]: found for found in in_own_process(*given)}


@pytest.mark.parametrize("op", [pytest.param(name, id=f"N4 by torch_npu-{name}") for name in OPS])
def test_the_calls_are_right_under_a_releases_schemas(op: str, judged: dict[str, dict[str, Any]]) -> None:
    found = judged[op]
    assert not found["failures"], "\n".join(found["failures"])
    assert found["judged"] + found["refused"] == CASES
    assert found["judged"] - found["idle"] >= CASES // 2


# A keyword of another operator; an argument left out that other values are the defaults of.
WRONG = """
import torch

def rms_norm(x, weight, *, eps):
    return torch.ops.npu.npu_rms_norm(x, weight, eps=eps)[0]

def routing(logits, bias, *, top_k, scale=1.0, eps=0.0, indices_dtype=torch.int32, **unused):
    weights, ids, _ = torch.ops.npu.npu_moe_gating_top_k(
        logits.float(), top_k, bias=bias, routed_scaling_factor=scale, eps=eps
    )
    return weights, ids.to(indices_dtype)

def pack_experts(w13, w2, **unused):
    return w13.mT, w2.mT

def experts(x, packed, weights, ids, **unused):
    return torch.ops.npu.npu_moe_init_routing_v2(
        x, ids.int(), active_num=ids.numel(), expert_num=len(packed[0]), expert_tokens_num_type=1,
        expert_tokens_num_flag=True, active_expert_range=[0, len(packed[0])],
    )[0]
"""


def test_a_wrong_call_is_caught(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    norm, chosen, sorted_ = in_own_process(
        "ops", "rms_norm", "routing", "experts", "--cases", "4", "--file", str(file), "--torch-npu", "2.7.1"
    )
    assert ["Unknown keyword argument 'eps'" in failure for failure in norm["failures"]] == [True] * 4
    assert "wrong\n  routing: " in "".join(chosen["failures"])
    # Its default is to quantise in 2.7.1 and not to in 2.13.0.
    assert "quant_mode=0 is not emulated" in "".join(sorted_["failures"])
