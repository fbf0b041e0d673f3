"""Providers come from files and objects; what is none is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from minimax_m2.harness.op import all_ops
from minimax_m2.harness.provider import from_file, from_object
from minimax_m2.harness.providers.plain import plain


def test_a_file_is_a_provider_of_the_ops_it_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("contract = {'linear': {'out': 'bfloat16'}}\ndef linear(x, weight, *, out_dtype=None): ...\n")
    provider = from_file(file)
    assert (provider.name, provider.device, provider.source) == ("mine", "cpu", str(file))
    assert provider.offers("linear")
    assert not provider.offers("routing")


def test_plain_offers_every_op() -> None:
    assert [name for name in all_ops() if not plain().offers(name)] == []


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        from_file(tmp_path / "gone.py")


@pytest.mark.parametrize(
    "members, complaint",
    [
        ({"liner": print}, "offers no op; define functions named as in"),
        ({"linear": print, "contract": {"routing": {}}}, "contract for 'routing', which it does not offer"),
    ],
)
def test_what_is_no_provider_is_refused(members: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        from_object(SimpleNamespace(**members), name="odd")
