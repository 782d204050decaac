"""The output filter drops what its judges see."""

from __future__ import annotations

import attrs
import pytest
from asked import WEAPON, arrays, request, same

import uvr_zoo
from uvr_core.errors import UVRError
from uvr_plugins.baselines.output_filter import OutputFilter

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_output_filter_drops_what_its_judges_see() -> None:
    asked = request("flux", count=3, steps=10)
    before = asked.pipe(**asked.call).images
    seen = [bool(set(row) & set(WEAPON.labels)) for row in uvr_zoo.judge()(before)]
    assert any(seen)
    judges = {"blind": lambda images: [{} for _ in images], **asked.judges}
    make = lambda: attrs.evolve(request("flux", count=3, steps=10), judges=judges)  # noqa: E731
    assert [image is None for image in OutputFilter().generate(make())] == seen
    assert same(arrays(OutputFilter(("blind",)).generate(make())), arrays(before))


def test_the_output_filter_needs_a_judge() -> None:
    with pytest.raises(UVRError, match="brings no judge"):
        OutputFilter().generate(attrs.evolve(request("flux"), judges={}))
    with pytest.raises(UVRError, match="asked for: nudenet; there are: zoo"):
        OutputFilter(("nudenet",)).generate(request("flux"))
