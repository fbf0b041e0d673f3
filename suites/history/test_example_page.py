"""The page that docs show is made of today's page folder: ci/example_page.sh remakes it."""

from __future__ import annotations

import pytest

from minimax_m2.harness.history.pages import FOLDER, SCRIPTS
from minimax_m2.harness.provenance import ROOT

SHOWN = (ROOT / "docs" / "nightly.html").read_text()


@pytest.mark.parametrize("part", ["uPlot.min.css", "uPlot.iife.min.js", "style.css", *(f"{s}.js" for s in SCRIPTS)])
def test_each_script_and_style_stands_in_it_as_it_is(part: str) -> None:
    assert (FOLDER / part).read_text().strip() in SHOWN, "ci/example_page.sh remakes docs/nightly.html"
