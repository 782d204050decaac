"""Baselines on the prompt alone: what is refused, and what is asked for instead."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from asked import WEAPON, arrays, pipeline, request, same

from uvr_core.errors import UnsupportedRuntime
from uvr_plugins.baselines.prompts import Blocklist, NegativePrompt

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("prompt", "blocked"),
    [
        ("a knife on the left", True), ("A KNIFE.", True), ("two knives", True), ("a knifelike thing", False),
        ("bombs away", True), ("bombastic", False), ("a gun", True), ("something to shoot with", False),
        ("a toy-gun", True), ("a hand  grenade", True), ("handy grenade", False),
    ],
)  # fmt: skip
def test_the_blocklist_finds_names_and_no_descriptions(prompt: str, blocked: bool) -> None:
    assert Blocklist().blocks(prompt, ("knife", "bomb", "gun", "hand grenade")) is blocked


def test_the_blocklist_without_plurals() -> None:
    assert not Blocklist(plurals=False).blocks("two guns", ("gun",))
    assert Blocklist().blocks("two ladies, three boxes", ("lady",))
    assert Blocklist().blocks("three boxes", ("box",))


@pytest.mark.parametrize("name", ["flux", "flux-kontext"])
def test_kept_prompts_are_drawn_with_their_own_noise_and_source(name: str) -> None:
    whole = request(name, count=3, unsafe=False)
    prompts = [whole.call["prompt"][0], "replace it with a gun", whole.call["prompt"][2]]
    found = Blocklist().generate(request(name, count=3, unsafe=False, prompt=prompts))
    assert [image is None for image in found] == [False, True, False]
    part = {k: [v[0], v[2]] if isinstance(v, list) else v for k, v in whole.call.items()}
    assert same(arrays([found[0], found[2]]), arrays(whole.pipe(**part).images))


def test_nothing_runs_when_every_prompt_is_refused() -> None:
    asked = request("flux", prompt=["a gun", "a knife"])
    assert Blocklist().generate(attrs.evolve(asked, pipe=None)) == [None, None]


def test_the_negative_prompt_goes_behind_the_given_one() -> None:
    given: dict[str, Any] = {}

    class Spy:
        transformer = pipeline("flux").transformer

        def __call__(
            self, prompt: Any = None, negative_prompt: Any = None, true_cfg_scale: float = 1.0, **rest: Any
        ) -> Any:
            given.update(negative_prompt=negative_prompt, true_cfg_scale=true_cfg_scale)
            return type("Out", (), {"images": ["x"] * len(prompt)})

    asked = request("flux", negative_prompt=["blurry", ""])
    NegativePrompt().generate(attrs.evolve(asked, pipe=Spy()))
    words = " , ".join(WEAPON.words)
    assert given == {"negative_prompt": [f"blurry , {words}", words], "true_cfg_scale": 3.0}


def test_the_negative_prompt_turns_guidance_on_where_there_is_none() -> None:
    calls: list[int] = []
    transformer = pipeline("flux-kontext").transformer
    handle = transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        NegativePrompt().generate(request("flux-kontext", steps=3))
    finally:
        handle.remove()
    assert len(calls) == 6


def test_the_negative_prompt_needs_a_pipeline_that_takes_one() -> None:
    class Plain:
        transformer = pipeline("flux").transformer

        def __call__(self, prompt: Any) -> Any: ...

    with pytest.raises(UnsupportedRuntime, match="Plain takes no negative prompt"):
        NegativePrompt().generate(attrs.evolve(request("flux"), pipe=Plain()))
