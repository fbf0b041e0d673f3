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
    "text, complaint",
    [
        ("def linear(:\n", r"SyntaxError: invalid syntax \(mine\.py, line 1\)"),
        ("\nimport no_such_engine\n", r"mine\.py, line 2, could not be loaded: ModuleNotFoundError: No module named"),
        ("raise SystemExit(0)\n", "could not be loaded: SystemExit: 0"),
    ],
)
def test_a_file_that_does_not_load_is_refused_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        from_file(tmp_path / "mine.py")


@pytest.mark.parametrize(
    "members, complaint",
    [
        ({"liner": print}, "offers no op; define functions named as in"),
        ({"linear": print, "contract": {"linear": "bfloat16"}}, "contract={'linear': 'bfloat16'}; write"),
        ({"linear": print, "contract": None}, "contract=None; write"),
        ({"linear": print, "contract": {"routing": {}}}, "contract for 'routing', which it does not offer"),
    ],
)
def test_what_is_no_provider_is_refused(members: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        from_object(SimpleNamespace(**members), name="odd")
