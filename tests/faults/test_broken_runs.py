"""Taps, hooks, passes and steps that go missing: no image comes out of a broken run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from rig import PIPELINES, STEPS, Rig, Scores, TextOnly, at, one, reference, seen_through

import uvr_core
from uvr_core.intercept.hooks import Hook

pytestmark = pytest.mark.usefixtures("one_thread")
Undo = Callable[[], object]
Fault = Callable[[Rig, Any], Undo]
NOTHING: Undo = lambda: None  # noqa: E731
FAULTS: dict[str, tuple[Fault, str, tuple[str, ...]]] = {}


def fault(says: str, on: tuple[str, ...] = PIPELINES) -> Callable[[Fault], Fault]:
    """A function that breaks something between two steps and returns what mends it; `says`: part of the error."""

    def keep(function: Fault) -> Fault:
        FAULTS[function.__name__.replace("_", " ")] = function, says, on
        return function

    return keep


def drop(hooks: Any) -> Undo:
    """Take UVR's hooks out of a module's table; the undo puts them back where they were."""
    kept = dict(hooks)
    for key in [key for key, hook in hooks.items() if isinstance(hook, Hook)]:
        del hooks[key]
    assert len(hooks) < len(kept)

    def undo() -> None:
        hooks.clear()
        hooks.update(kept)

    return undo


@fault("did not fire at step 1")
def a_tap_loses_its_first_hook(rig: Rig, reg: Any) -> Undo:
    return drop(rig.transformer.transformer_blocks[1].attn._forward_pre_hooks)


@fault("was entered and not left at step 1")
def a_tap_loses_its_second_hook(rig: Rig, reg: Any) -> Undo:
    return drop(rig.transformer.transformer_blocks[0].attn._forward_hooks)


@fault("was entered and not left at step 1")
def the_last_tap_loses_its_second_hook(rig: Rig, reg: Any) -> Undo:
    return drop(reg._interceptor.taps.modules[reg.taps[-1]]._forward_hooks)


@fault("ran outside a call of the transformer")
def the_transformer_loses_its_first_hook(rig: Rig, reg: Any) -> Undo:
    return drop(rig.transformer._forward_pre_hooks)


@fault("began inside the first")
def the_transformer_loses_its_second_hook(rig: Rig, reg: Any) -> Undo:
    return drop(rig.transformer._forward_hooks)


@fault("did not fire at step 1")
def the_taps_are_taken_off(rig: Rig, reg: Any) -> Undo:
    taps = reg._interceptor.taps
    originals = dict(taps._originals)
    taps.remove()

    def undo() -> None:
        reg.detach()
        assert all(module.processor in originals.values() for module in taps.modules.values())

    return undo


@fault("did not fire at step 1")
def a_block_is_skipped(rig: Rig, reg: Any) -> Undo:
    block = rig.transformer.transformer_blocks[1]
    block.forward = lambda hidden_states, encoder_hidden_states, *args, **kw: (encoder_hidden_states, hidden_states)
    return lambda: block.__dict__.pop("forward")


class Opaque:
    """Attention by a name that nobody knows."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **kw: Any) -> Any:
        return hidden_states, encoder_hidden_states


def swap(attention: Any, processor: object) -> Undo:
    old, attention.processor = attention.processor, processor
    return lambda: setattr(attention, "processor", old)


@fault("reaches no attention call that UVR can see")
def a_processor_is_swapped(rig: Rig, reg: Any) -> Undo:
    return swap(rig.transformer.transformer_blocks[1].attn, Opaque())


@fault("did not fire at step 1")
def a_processor_is_swapped_behind_the_hook(rig: Rig, reg: Any) -> Undo:
    """By a hook that runs later: with a stock processor, which would attend unseen."""
    attention = rig.transformer.transformer_blocks[1].attn
    seated, stock = attention.processor, type(attention.processor).__mro__[1]()
    handle = attention.register_forward_pre_hook(lambda m, args: setattr(m, "processor", stock))

    def undo() -> None:
        handle.remove()
        attention.processor = seated

    return undo


@fault("did not fire at step 1")
def an_attention_module_is_replaced(rig: Rig, reg: Any) -> Undo:
    block, other = rig.transformer.transformer_blocks[0], Rig(rig.name)
    mine, block.attn = block.attn, other.transformer.transformer_blocks[0].attn
    return lambda: setattr(block, "attn", mine)


@fault("fired 2 times at step 1")
def an_attention_call_fires_twice(rig: Rig, reg: Any) -> Undo:
    attention = rig.transformer.transformer_blocks[1].attn
    stock = attention.forward
    attention.forward = lambda *args, **kw: (stock(*args, **kw), stock(*args, **kw))[1]
    return lambda: attention.__dict__.pop("forward")


class Replay:
    """In the transformer's place: a pipeline's own cache, which gives some forwards from memory."""

    def __init__(self, stock: Any, skipped: Callable[[int], bool]):
        self.stock, self.skipped, self.calls, self.last = stock, skipped, 0, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stock, name)

    def __call__(self, *args: Any, **kw: Any) -> Any:
        self.calls += 1
        if self.last is None or not self.skipped(self.calls):
            self.last = self.stock(*args, **kw)
        return self.last


def replayed(rig: Rig, skipped: Callable[[int], bool]) -> Undo:
    """Calls are counted from the second step on; the first of them is never skipped."""
    stock = rig.pipe.transformer
    rig.pipe.__dict__["transformer"] = Replay(stock, skipped)
    return lambda: rig.pipe.__dict__.update(transformer=stock)


@fault(f"ran {STEPS} steps but {STEPS - 1} carried a verified forward")
def a_step_without_a_forward(rig: Rig, reg: Any) -> Undo:
    return replayed(rig, lambda call: call == 2)


@fault(f"ran {STEPS} steps but 1 carried a verified forward")
def the_transformer_is_replaced(rig: Rig, reg: Any) -> Undo:
    stock, rig.pipe.transformer = rig.pipe.transformer, Rig(rig.name).transformer
    return lambda: setattr(rig.pipe, "transformer", stock)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("what", FAULTS)
def test_no_image_comes_out_of_a_broken_run(what: str, name: str) -> None:
    break_it, says, on = FAULTS[what]
    if name not in on:
        pytest.skip("not on this pipeline")
    expected, rig, mend = reference(name), Rig(name), [NOTHING]
    stock = rig.run()
    with rig.attach() as reg:
        rig.run()
        assert reg.report.posture == "regulate"
        with pytest.raises(uvr_core.UVRError, match=says):
            rig.run(callback_on_step_end=at(0, lambda: mend.append(break_it(rig, reg))))
        assert reg.report is None
        for undo in reversed(mend):
            undo()
        if reg.attached:
            assert torch.equal(rig.run(), expected)
            assert reg.report.posture == "regulate"
    assert not seen_through(rig)
    assert torch.equal(rig.run(), stock)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_hook_dropped_before_the_last_step_is_missed_too(name: str) -> None:
    """No forward follows that would notice."""
    rig, mend = Rig(name), [NOTHING]
    with rig.attach() as reg:
        with pytest.raises(uvr_core.TapNotFired, match="attention calls were verified"):
            rig.run(
                callback_on_step_end=at(STEPS - 2, lambda: mend.append(drop(rig.transformer._forward_hooks)))
            )  # fmt: skip
        assert reg.report is None
        mend[-1]()
        assert torch.equal(rig.run(), reference(name))


GUIDED = {
    "flux": {"negative_prompt": ["", ""], "true_cfg_scale": 3.0},
    "flux-kontext": {"negative_prompt": ["", ""], "true_cfg_scale": 3.0},
    "qwen-image": {"negative_prompt": [" ", " "], "true_cfg_scale": 3.0},
    "qwen-image-edit": {"negative_prompt": [" ", " "], "true_cfg_scale": 3.0},
}


@pytest.mark.parametrize("branch", ["cond", "uncond"])
@pytest.mark.parametrize("name", GUIDED)
def test_a_guidance_pass_missing_in_one_step(name: str, branch: str) -> None:
    rig, mend, number = Rig(name), [NOTHING], 3 if branch == "cond" else 2
    clean = rig.run(**GUIDED[name])
    with rig.attach() as reg:
        expected = rig.run(**GUIDED[name])
        skip = at(0, lambda: mend.append(replayed(rig, lambda call: call == number)))
        if branch == "uncond" and name != "flux-kontext":  # it has a name, and is left alone as it is
            assert not torch.equal(rig.run(callback_on_step_end=skip, **GUIDED[name])[1], clean[1])
            assert [f.located for f in reg.report.findings] == [False, True]
        else:
            with pytest.raises(uvr_core.TapNotFired, match=r"transformer passes, step 0 had 2|no forward of step 2"):
                rig.run(callback_on_step_end=skip, **GUIDED[name])
            assert reg.report is None
        mend[-1]()
        assert torch.equal(rig.run(**GUIDED[name]), expected)
    assert torch.equal(rig.run(**GUIDED[name]), clean)


@pytest.mark.parametrize("name", ["flux", "qwen-image", "qwen-image-edit"])
def test_every_pass_named_unconditional_in_later_steps(name: str) -> None:
    """A pipeline that names its passes wrongly: the counts are right, and nothing would be regulated."""
    rig, renamed = Rig(name), [False]
    with rig.attach() as reg:
        named = rig.transformer.cache_context
        rig.transformer.__dict__["cache_context"] = lambda name, **told: named(
            "uncond" if renamed[0] else name, **told
        )  # fmt: skip
        with pytest.raises(uvr_core.TapNotFired, match="no forward of step 1 was named"):
            rig.run(callback_on_step_end=at(0, lambda: renamed.__setitem__(0, True)), **GUIDED[name])
        assert reg.report is None
        rig.transformer.__dict__["cache_context"] = named
        assert torch.equal(rig.run(), reference(name))
    assert "cache_context" not in rig.transformer.__dict__


@pytest.mark.parametrize("name", PIPELINES)
def test_a_bank_of_another_model_attaches_nothing(name: str) -> None:
    rig, other = Rig(name), Rig("sd3" if name != "sd3" else "flux")
    with pytest.raises(uvr_core.ConceptMismatch, match="model"):
        rig.attach(concepts=[rig.bank, attrs.evolve(other.bank, name="y")])
    assert not seen_through(rig)


@pytest.mark.parametrize(
    "bad", [{"no_such_option": 1}, {"num_inference_steps": 0}, {"prompt_embeds": torch.zeros(1)}], ids=str
)
def test_a_call_that_never_began_shows_no_report(bad: dict[str, Any]) -> None:
    rig = Rig("flux")
    with pytest.raises(Exception) as caught:  # noqa: PT011
        rig.run(**bad)
    own = type(caught.value), str(caught.value)
    with rig.attach() as reg:
        rig.run()
        assert reg.report.posture == "regulate"
        with pytest.raises(Exception) as caught:  # noqa: PT011, stock's own
            rig.run(**bad)
        assert (type(caught.value), str(caught.value)) == own
        assert reg.report is None
        rig.run()
        assert reg.report.posture == "regulate"


def test_a_run_does_not_show_the_one_before() -> None:
    rig, seen = Rig("flux"), []
    with rig.attach() as reg:
        rig.run()
        rig.run(callback_on_step_end=at(1, lambda: seen.append(reg.report)))
    assert seen == [None]


@pytest.mark.parametrize("name", PIPELINES)
def test_the_posture_is_the_one_in_force(name: str) -> None:
    rig, seen = Rig(name), []
    stock = rig.run()
    for plan, posture in (
        ({"concepts": None}, "observe"),
        ({"policy": "observe"}, "observe"),
        ({}, "regulate"),
        ({"concepts": [(rig.bank, "observe"), (attrs.evolve(rig.bank, name="y"), TextOnly())]}, "regulate"),
    ):
        with rig.attach(**plan) as reg:
            assert reg.report is None
            images = rig.run()
            assert reg.report.posture == posture
            assert torch.equal(images, stock) == (posture == "observe")
    with rig.attach(to=rig.transformer) as reg:
        rig.run(callback_on_step_end=at(STEPS - 1, lambda: seen.append(reg.report)))
        assert (reg.report.posture, reg.report.steps) == ("regulate", STEPS)
    assert (seen[0].posture, seen[0].steps) == ("incomplete", STEPS)


def test_a_pipeline_that_swallows_the_error_still_gives_no_image() -> None:
    """Somebody's loop that goes on after an error of the transformer, with the last prediction."""
    rig, calls = Rig("flux"), []
    stock = rig.pipe.transformer

    class Careless(Replay):
        def __call__(self, *args: Any, **kw: Any) -> Any:
            calls.append(1)
            with contextlib.suppress(uvr_core.UVRError):
                self.last = self.stock(*args, **kw)
            return self.last

    def careless() -> None:
        rig.pipe.__dict__["transformer"] = Careless(stock, lambda call: False)
        rig.pipe.__dict__["transformer"].last = (torch.zeros(2, 64, 16),)

    detector = Scores(one(torch.nan))
    with rig.attach(detector=detector) as reg:
        with pytest.raises(uvr_core.UVRError):
            rig.run(callback_on_step_end=at(0, careless))
        assert len(calls) == STEPS - 1
        assert reg.report is None
        rig.pipe.__dict__["transformer"] = stock
        detector.on = False
        assert torch.equal(rig.run(), reference("flux"))
