"""What every built-in baseline keeps, on real zoo pipelines: the contract, and that none leaves a trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from asked import INSIDE, NAMES, arrays, make, pipeline, request, same, stock
from torch import nn

from uvr_core import plugins
from uvr_core.protocols import Baseline
from uvr_core.testing import Status, check_baseline
from uvr_plugins.baselines.adavd import UniAdaVD
from uvr_plugins.baselines.concept_attention import ConceptAttention
from uvr_plugins.baselines.prompts import NegativePrompt
from uvr_plugins.baselines.sld import SafeLatentDiffusion
from uvr_zoo.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", NAMES)
def test_baselines_keep_the_contract(name: str) -> None:
    baseline = make(name)
    assert isinstance(baseline, Baseline)
    assert baseline.name == name
    prompts = ["a knife on the left , night background , toy style", "a cat on the right , sky background , toy style"]
    report = check_baseline(baseline, lambda: request("flux", prompt=prompts))
    assert {o.name for o in report.outcomes if o.status is Status.SKIPPED} == set()


def test_the_built_in_baselines() -> None:
    found = {n for n, (_, origin) in plugins.registry().names("baseline").items() if origin == "builtin-plugins"}
    assert found == {*NAMES, "sld-max"}
    assert make("sld-max") == SafeLatentDiffusion.setting("max")
    assert make("sld") == SafeLatentDiffusion.setting("strong")


@pytest.mark.parametrize("name", [n for n in RECIPES if n != "flux"])
@pytest.mark.parametrize("baseline", INSIDE)
def test_they_act_on_every_pipeline_and_leave_it_stock(baseline: str, name: str) -> None:
    before = stock(request(name))
    found = arrays(make(baseline).generate(request(name)))
    if baseline != "concept-attention":  # whose fixed threshold may locate nothing
        assert not any(np.array_equal(a, b) for a, b in zip(before, found, strict=True))
    assert same(before, stock(request(name)))
    transformer = pipeline(name).transformer
    assert not transformer._forward_hooks
    assert not transformer._forward_pre_hooks


class Broken(Exception):
    pass


@pytest.mark.parametrize("name", ["sd3", "qwen-image-edit"])
@pytest.mark.parametrize("baseline", INSIDE)
def test_an_error_inside_the_transformer_leaves_it_stock(baseline: str, name: str) -> None:
    """In the middle of an attention of whatever pass runs then, the extra ones included."""
    before = stock(request(name))
    transformer, calls = pipeline(name).transformer, []

    def fail(module: nn.Module, args: object) -> None:
        calls.append(module)
        if len(calls) == 4:
            raise Broken

    handle = transformer.transformer_blocks[1].register_forward_pre_hook(fail)
    try:
        with pytest.raises(Broken):
            make(baseline).generate(request(name, steps=4))
    finally:
        handle.remove()
    assert same(before, stock(request(name)))


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (SafeLatentDiffusion, {"scale": -1.0}), (SafeLatentDiffusion, {"warmup": 2.0}),
        (NegativePrompt, {"scale": 1.0}),
        (UniAdaVD, {"strength": -1.0}), (UniAdaVD, {"centre": 1.5}), (ConceptAttention, {"threshold": 2.0}),
        (ConceptAttention, {"last": 0.0}), (ConceptAttention, {"temperature": 0.0}),
    ],
)  # fmt: skip
def test_bad_settings_name_the_attribute(kind: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        kind(**bad)
