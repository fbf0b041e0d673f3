"""The fused paths that MiniMax-M2 deployments broke in, each as the ops and cases that show it working."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from minimax_m2.harness.case import Field
from minimax_m2.harness.devices import absence
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.sampling import sampled


class Standing(Enum):
    """What is known of a path on a device."""

    PROVEN = "proven"
    FAILING = "failing"
    NOT_HERE = "not here"
    NOT_YET_BUILT = "not yet built"


@dataclass(frozen=True, slots=True)
class Feature:
    """A path: the ops it needs, each with the case fields that select it."""

    name: str
    needs: tuple[tuple[str, dict[str, Field]], ...]


FEATURES = (
    Feature("int64 top-k ids", (("routing", {"ids": "int64"}), ("experts", {"ids": "int64"}))),
    Feature("bias-corrected routing", (("routing", {"bias": "large"}), ("routing", {"bias": "below"}))),
    Feature("uneven TP padding", (("qk_sum_squares", {"counted": 0}), ("qk_norm_rope", {"stats": "given"}))),
    Feature("empty-batch short circuit", tuple((op, {"T": 0}) for op in ("routing", "experts", "qk_norm_rope"))),
    Feature("QK norm + rope", (("qk_norm_rope", {}),)),
    Feature("fp32 router", (("router_gemm", {}),)),
    Feature("FP8 experts", (("experts", {"weight": "float8_e4m3fn"}),)),
    Feature("routed packed format", (("pack_routing", {}), ("unpack_routing", {}), ("experts", {"packed_ids": 1}))),
    Feature("EAGLE3 capture", (("capture", {}),)),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """The standing of one path on one device, with the reason where it is not proven."""

    feature: str
    device: str
    standing: Standing
    reason: str = ""


def survey(
    devices: Iterable[str], provider_of: Callable[[str], Provider], *, count: int = 6,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Finding]:  # fmt: skip
    """Run every path on every device that is here."""
    found = []
    for feature in FEATURES:
        for device in devices:
            progress(f"{feature.name} on {device}")
            found.append(_finding(feature, device, provider_of, count))
    return found


def _finding(feature: Feature, device: str, provider_of: Callable[[str], Provider], count: int) -> Finding:
    provider = provider_of(device)
    unbuilt = [op for op, _ in feature.needs if op != "capture" and not (op in all_ops() and provider.offers(op))]
    if unbuilt:
        return Finding(feature.name, device, Standing.NOT_YET_BUILT, f"no {device} kernel for {', '.join(unbuilt)}")
    reason = absence(device)
    if reason is not None:
        return Finding(feature.name, device, Standing.NOT_HERE, reason)
    for op_name, fields in feature.needs:
        failure = capture_failure(device) if op_name == "capture" else _failure(op_name, fields, provider, count)
        if failure:
            return Finding(feature.name, device, Standing.FAILING, failure)
    return Finding(feature.name, device, Standing.PROVEN)


def _failure(op_name: str, fields: dict[str, Field], provider: Provider, count: int) -> str:
    op = find_op(op_name)
    for drawn in sampled(op, count):
        case = op.case(**{k: v for k, v in drawn.items() if k != "op"} | fields)
        for variant in provider.variants:
            verdict = judge(case, provider, variant)
            if not verdict.passed:
                return verdict.explain(provider.source).splitlines()[0]
    return ""


def capture_failure(device: str) -> str:
    """Compare the hidden states that a model captures with those that its layers are seen to pass on."""
    from minimax_m2.harness.language import capture_mismatch

    return capture_mismatch(device)
