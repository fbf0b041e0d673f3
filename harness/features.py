"""The fused paths that MiniMax-M2 deployments broke in, each as the ops and cases that show it working."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from minimax_m2.harness.capture import capture_mismatch
from minimax_m2.harness.case import Field
from minimax_m2.harness.devices import absence
from minimax_m2.harness.judge import judge
from minimax_m2.harness.models import tiny_m2
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.parallel_ops import is_shared, split_over
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
    """A path: the ops it needs, each with the case fields that select it, split over ``tp * dp`` simulated ranks.

    dp  attention groups, one of which brings no token; ep, groups of experts, of all ranks
    """

    name: str
    needs: tuple[tuple[str, dict[str, Field]], ...]
    tp: int = 1
    dp: int = 1
    ep: int = 1

    def on(self, provider: Provider) -> Provider:
        """The provider whose every call the path's ranks share."""
        if self.tp * self.dp == 1:
            return provider
        return split_over(provider, tp=self.tp, dp=self.dp, ep=self.ep)


HEADS: tuple[tuple[str, dict[str, Field]], ...] = (
    ("qk_sum_squares", {}), ("qk_norm_rope", {"stats": "none"}), ("attention", {}),
)  # fmt: skip
# Experts of M2's width, few and short of rows: a share of 192 of TP8 ends inside a block of 128.
WIDE: dict[str, Field] = {"quant": "weights", "block": 128, "I": 1536, "H": 64, "E": 8, "K": 2, "T": 5, "active": 4}

FEATURES = (
    Feature("int64 top-k ids", (("routing", {"ids": "int64"}), ("experts", {"ids": "int64"}))),
    Feature("bias-corrected routing", (("routing", {"bias": "large"}), ("routing", {"bias": "below"}))),
    Feature("uneven TP padding", (("qk_sum_squares", {}), ("qk_norm_rope", {"stats": "padded"}))),
    Feature("empty-batch short circuit", tuple((op, {"T": 0}) for op in ("routing", "experts", "qk_norm_rope"))),
    Feature("QK norm + rope", (("qk_norm_rope", {}),)),
    Feature("fp32 router", (("router_gemm", {}),)),
    Feature("FP8 experts", (("experts", {"quant": "weights"}), ("fp8_linear", {}))),
    Feature("routed packed format", (("pack_routing", {}), ("unpack_routing", {}), ("experts", {"ids": "packed"}))),
    Feature("EAGLE3 capture", (("capture", {}),)),
    Feature("TP3, heads padded", HEADS, tp=3),
    Feature("TP16, KV heads replicated", HEADS, tp=16),
    Feature("TP8, FP8 experts of 192", (("experts", WIDE),), tp=8),
    Feature("EP4, whole FP8 experts", (("experts", WIDE),), tp=4, ep=4),
    Feature("DP3 x TP2, an idle group", (("experts", WIDE),), tp=2, dp=3, ep=3),
)

# A capture on a device says something only when every step of the model runs there.
MODEL_STEPS = (
    *("embedding", "rms_norm", "add_rms_norm", "linear", "qk_norm_rope_cache", "attention"),
    *("router", "experts", "lm_head"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """The standing of one path on one device, with the reason where it is not proven."""

    feature: str
    device: str
    standing: Standing
    reason: str = ""
    tp: int = 1
    dp: int = 1
    ep: int = 1


def survey(
    devices: Sequence[str], provider_of: Callable[[str], Provider], *, features: Iterable[Feature] = FEATURES,
    count: int = 6, progress: Callable[[str], None] = lambda text: None,
) -> list[Finding]:  # fmt: skip
    """Run every path on every device that is here."""
    found = []
    for feature in features:
        for device in devices:
            progress(f"{feature.name} on {device}")
            finding = _finding(feature, device, provider_of, count)
            found.append(replace(finding, tp=feature.tp, dp=feature.dp, ep=feature.ep))
    return found


def _finding(feature: Feature, device: str, provider_of: Callable[[str], Provider], count: int) -> Finding:
    provider = provider_of(device)
    needed = MODEL_STEPS if feature.needs == (("capture", {}),) else tuple(op for op, _ in feature.needs)
    unbuilt = [op for op in needed if op not in all_ops() or not provider.offers(op)]
    if unbuilt:
        return Finding(feature.name, device, Standing.NOT_YET_BUILT, f"no {device} kernel for {', '.join(unbuilt)}")
    reason = absence(device)
    if reason is None and needed == MODEL_STEPS and tiny_m2() is None:
        reason = "suites/data/tiny-m2 is part of the checkout only"
    if reason is not None:
        return Finding(feature.name, device, Standing.NOT_HERE, reason)
    for op_name, fields in feature.needs:
        shared = feature.on(provider)
        failure = capture_mismatch(shared) if op_name == "capture" else _failure(op_name, fields, shared, count)
        if failure:
            return Finding(feature.name, device, Standing.FAILING, failure)
    return Finding(feature.name, device, Standing.PROVEN)


def _failure(op_name: str, fields: dict[str, Field], provider: Provider, count: int) -> str:
    op = find_op(op_name)
    drawn_cases = [case for case in sampled(op, count) if is_shared(case)]
    if not drawn_cases:
        return f"{op_name}: none of {count} draws is a case, so nothing was judged"
    for drawn in drawn_cases:
        case = op.case(**{k: v for k, v in drawn.items() if k != "op"} | fields)
        for variant in provider.variants_of(op.name):
            verdict = judge(case, provider, variant)
            if not verdict.passed:
                return verdict.explain(provider.source).splitlines()[0]
    return ""
