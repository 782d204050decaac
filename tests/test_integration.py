"""Every pipeline class x every built-in policy x batch x guidance, on real diffusers classes with random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from driven import spied
from PIL import Image
from tiny import tiny_zoo

import uvr_core
from uvr_core.adapter import Layout
from uvr_core.concepts import ConceptBank
from uvr_core.engine.lookup import find_adapter, fingerprint
from uvr_core.engine.readings import features
from uvr_core.intercept.calls import AttentionCall
from uvr_core.intercept.ledger import Run
from uvr_core.intercept.taps import Taps
from uvr_plugins.detectors import Oracle
from uvr_zoo.architectures import pack

pytestmark = pytest.mark.usefixtures("one_thread")

PIPELINES = ["flux", "flux-kontext", "sd3", "qwen-image", "qwen-image-edit"]
EDITING = ("flux-kontext", "qwen-image-edit")
POLICIES = sorted(uvr_core.plugins.registry().names("policy"))
PROMPTS = ["a cat", "a knife on the left", "a dog in the middle"]
STEPS = 2  # at noise levels 1 and 2/3
PATCHES = 64
# Policies that change images, with and without guidance; "redirect" needs the unconditional pass.
ACTING = [
    (policy, guided)
    for policy in POLICIES
    for guided in (False, True)
    if policy not in ("observe", "refuse") and (guided or policy != "redirect")
]


def stopped(policy: str, guided: bool, batch: int) -> tuple[type[uvr_core.UVRError], str] | None:
    """What a concept located in one image of the batch raises under that policy: the error and its message."""
    if policy == "refuse" and batch == 1:
        return uvr_core.UnsafeContent, "concept 'x' was located in image"
    if policy == "redirect" and not guided:
        return uvr_core.UVRError, "turn guidance on"
    return None


@attrs.define
class Switch:
    """An oracle whose mask can be changed between generations."""

    masks: np.ndarray
    name: str = "switch"
    threshold: float = 0.0

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        return 2 * torch.from_numpy(self.masks).float().flatten(1) - 1


class Tiny:
    """A tiny pipeline with fixed prompts, seeds and source images."""

    def __init__(self, name: str):
        self.name, self.pipe = name, tiny_zoo(name)
        self.kind = type(self.pipe)
        self.adapter = find_adapter(self.pipe.transformer)
        self.stock = functools.cache(self.run)  # (samples, guided) -> images, before anything is attached
        self.called = functools.cache(self._called)
        self.taps = list(self.adapter.taps(self.pipe.transformer))
        rng = np.random.default_rng(0)
        self.sources = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in PROMPTS]

    def run(self, samples: tuple[int, ...] = (0, 1, 2), guided: bool = False, steps: int = STEPS) -> np.ndarray:
        """Images (B, 64, 64, 3) float32 of the chosen prompts."""
        options: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": steps, "output_type": "np"}
        if self.name == "sd3":
            options["guidance_scale"] = 3.0 if guided else 1.0
        else:
            options["true_cfg_scale"] = 3.0 if guided else 1.0
        if guided:
            options["negative_prompt"] = [""] * len(samples)
        if self.name in EDITING:
            options["image"] = [self.sources[i] for i in samples]
        if self.name == "flux-kontext":
            options |= {"max_area": 64 * 64, "_auto_resize": False}
        options["generator"] = [torch.Generator().manual_seed(40 + i) for i in samples]
        return self.pipe(prompt=[PROMPTS[i] for i in samples], **options).images

    def _called(self) -> dict[str, Any]:
        """Keyword arguments of the transformer's first forward in a run of all prompts without guidance."""
        seen: list[dict[str, Any]] = []

        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            assert not args
            seen.append(kwargs)

        handle = self.pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
        self.run(steps=1)
        handle.remove()
        return seen[0]

    def forward(self) -> torch.Tensor:
        """The transformer's prediction for `called()`, as tokens (B, I, C)."""
        with torch.no_grad():
            prediction = self.pipe.transformer(**self.called())[0]
        return pack(prediction) if prediction.dim() == 4 else prediction

    def layout(self) -> Layout:
        return self.adapter.layout({"self": self.pipe.transformer, **self.called()})

    def bank(self) -> uvr_core.ConceptBank:
        """A concept that fits; what it holds does not matter to the oracle."""
        model = fingerprint(self.pipe.transformer, self.adapter.taps(self.pipe.transformer))
        probe = self.adapter.probe_paths(self.pipe.transformer)[0]
        anchors = torch.randn(3, model.heads * model.head_dim, generator=torch.Generator().manual_seed(7))
        return uvr_core.ConceptBank("x", model, {f"anchors/{probe}": anchors, "sigma": torch.tensor([1.0])})

    def attach(self, masks: np.ndarray, policy: object, to: Any = None) -> uvr_core.Regulator:
        return uvr_core.attach(
            self.pipe if to is None else to, concepts=self.bank(), detector=Oracle(masks), policy=policy
        )


BUILT: dict[str, Tiny] = {}


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Tiny]:
    """name -> its pipeline, built once; each test leaves it detached."""

    def built(name: str) -> Tiny:
        if name not in BUILT:
            BUILT[name] = Tiny(name)
        return BUILT[name]

    return built


@pytest.fixture
def still_stock(tiny: Callable[[str], Tiny], name: str) -> Iterator[None]:
    """After the test: nothing of a regulator is left on the pipeline. If something is, the next test gets a new one."""
    model = tiny(name)
    modules = model.adapter.taps(model.pipe.transformer)
    processors = [m.processor for m in modules.values()]
    yield
    clean = (
        type(model.pipe) is model.kind
        and "cache_context" not in vars(model.pipe.transformer)
        and [m.processor for m in modules.values()] == processors
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.pipe.transformer.modules())
    )
    if not clean:
        del BUILT[name]
    assert clean, f"{name}: the pipeline was left regulated"


def masks_of(*samples: int) -> np.ndarray:
    """(B, 8, 8): of the three prompts, the second alone is unsafe (9 patches)."""
    masks = np.zeros((3, 8, 8), bool)
    masks[1, 2:5, 3:6] = True
    return masks[list(samples)]


def furthest(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Per sample, the largest absolute difference."""
    return [float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True)]


def identical(a: np.ndarray, b: np.ndarray) -> list[bool]:
    return [np.array_equal(x, y) for x, y in zip(a, b, strict=True)]


# ---------------------------------------------------------------------------------------------- the matrix


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("samples", [(1,), (0, 1, 2)], ids=["batch1", "batch3"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", PIPELINES)
def test_unsafe_images_change_safe_ones_do_not_and_detach_restores(
    tiny: Callable[[str], Tiny], name: str, policy: str, samples: tuple[int, ...], guided: bool
) -> None:
    model = tiny(name)
    stock = model.stock(samples, guided)
    assert np.isfinite(stock).all()
    assert all(image.std() > 0.01 for image in stock)
    unsafe = [i == 1 for i in samples]
    acts = policy != "observe"

    if (error := stopped(policy, guided, len(samples))) is not None:
        with model.attach(masks_of(*samples), policy) as reg, pytest.raises(error[0], match=error[1]):
            model.run(samples, guided)
        assert (None if reg.report is None else reg.report.posture) == ("refused" if policy == "refuse" else None)
        assert type(model.pipe) is model.kind
        assert np.array_equal(model.run(samples, guided), stock)
        return

    with model.attach(masks_of(*samples), policy) as reg:
        images = model.run(samples, guided)
        report = reg.report

    if policy == "refuse":
        assert [image is None for image in images] == unsafe
        assert all(np.array_equal(images[i], stock[i]) for i in (0, 2))
        assert report.refused == (1,)
    else:
        assert identical(images, stock) == [not (acts and u) for u in unsafe]
        assert report.refused == ()
    if acts and policy != "refuse":
        assert furthest(images, stock)[samples.index(1)] > 1e-3  # more than another order of summation
        assert np.isfinite(images).all()

    passes = 2 if guided and name != "sd3" else 1
    assert report is not None
    assert report.posture == ("regulate" if acts else "observe")
    assert (report.steps, report.passes, report.taps) == (STEPS, passes, len(model.taps))
    assert report.fired == STEPS * passes * len(model.taps)
    assert [f.sample for f in report.findings] == list(range(len(samples)))
    assert [f.located for f in report.findings] == unsafe
    assert [f.patches for f in report.findings] == [9 * u for u in unsafe]
    assert [f.first_step for f in report.findings] == [0 if u else None for u in unsafe]
    regulated = [f.steps_regulated for f in report.findings]
    assert [n > 0 for n in regulated] == [acts and u and policy != "refuse" for u in unsafe]
    known = {"observe": 0, "refuse": 0, "uvr-released": 1, "noise": 1, "uvr": STEPS, "block": STEPS, "redirect": STEPS}
    if policy in known:  # the others may find nothing to change in a step
        assert regulated[samples.index(1)] == known[policy]

    assert type(model.pipe) is model.kind
    assert np.array_equal(model.run(samples, guided), stock)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize(("policy", "guided"), ACTING)
@pytest.mark.parametrize("name", PIPELINES)
def test_a_regulated_image_does_not_depend_on_the_others(
    tiny: Callable[[str], Tiny], name: str, policy: str, guided: bool
) -> None:
    """Another unsafe image beside it, with a larger mask, changes nothing but rounding."""
    model = tiny(name)
    masks = masks_of(0, 1, 2)
    masks[2, 1:7, 2:6] = True
    with model.attach(masks, policy):
        together = model.run((0, 1, 2), guided)
    with model.attach(masks[1:2], policy):
        alone = model.run((1,), guided)
    np.testing.assert_allclose(alone[0], together[1], atol=1e-4)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "observe"])
@pytest.mark.parametrize("name", PIPELINES)
def test_nothing_located_is_bitwise_stock(tiny: Callable[[str], Tiny], name: str, policy: str) -> None:
    model = tiny(name)
    for guided in (False, True):
        with model.attach(np.zeros((3, 8, 8), bool), policy) as reg:
            assert np.array_equal(model.run(guided=guided), model.stock((0, 1, 2), guided))
            assert not any(f.located or f.steps_regulated for f in reg.report.findings)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("name", PIPELINES)
def test_refuse_stops_at_once_and_leaves_the_regulator_ready(
    tiny: Callable[[str], Tiny], name: str, guided: bool
) -> None:
    model, forwards = tiny(name), []
    switch = Switch(masks_of(1, 1, 1))
    handle = model.pipe.transformer.register_forward_pre_hook(lambda m, a: forwards.append(1))
    stock = model.stock((0, 1, 2), guided)
    forwards.clear()
    try:
        with uvr_core.attach(model.pipe, concepts=model.bank(), detector=switch, policy="refuse") as reg:
            for _ in range(2):
                with pytest.raises(uvr_core.UnsafeContent, match=r"'x' .*images 0, 1, 2 .*step 0") as caught:
                    model.run(guided=guided)
                assert (caught.value.concept, caught.value.samples, caught.value.step) == ("x", (0, 1, 2), 0)
                assert reg.report.posture == "refused"
                assert reg.report.refused == (0, 1, 2)
            assert len(forwards) == 2, "one forward each, broken off inside"
            switch.masks = np.zeros((3, 8, 8), bool)
            assert np.array_equal(model.run(guided=guided), stock)
            assert reg.report.posture == "regulate"
    finally:
        handle.remove()


class Later(Switch):
    """The same, whose second image shows nothing before the third step."""

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        scores = super().scores(features, sigma, bank, probe)
        if sigma > 0.7:
            scores[1:2] = -1
        return scores


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_refused_images_are_replaced_in_every_kind_of_result(tiny: Callable[[str], Tiny], name: str) -> None:
    """Two refused by one concept, at two steps; PIL, tensor and tuple results; a picture of the user's own."""
    from uvr_plugins.policies import Refuse

    model, own = tiny(name), Image.new("RGB", (64, 64), "white")
    options: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": STEPS, "guidance_scale": 1.0}

    def run(**more: Any) -> Any:
        generator = [torch.Generator().manual_seed(40 + i) for i in range(3)]
        return model.pipe(prompt=list(PROMPTS), generator=generator, **options, **more)

    stock = run().images
    with uvr_core.attach(
        model.pipe, concepts=model.bank(), detector=Later(masks_of(1, 1, 0)), policy=Refuse(instead=own)
    ) as reg:
        images = run().images
        assert images[0] is own
        assert images[1] is own
        assert np.array_equal(np.asarray(images[2]), np.asarray(stock[2]))
        assert reg.report.refused == (0, 1)
        first, second = (f for f in reg.report.findings if f.refused)
        assert first.first_step < second.first_step
        assert "image 1 x: located" in str(reg.report)
        assert str(reg.report).count("the image was kept back") == 2
        assert [f["refused"] for f in reg.report.to_dict()["findings"]] == [True, True, False]
        (tuple_images,) = run(return_dict=False)
        assert tuple_images[:2] == [own, own]
        tensors = run(output_type="pt").images
        assert tensors[0] is own
        assert isinstance(tensors[2], torch.Tensor)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_what_is_located_after_the_steps_of_refusal_is_regulated(tiny: Callable[[str], Tiny], name: str) -> None:
    """Image 0 is located in the first step and refused, image 1 in the second and regulated as `then` says."""
    from uvr_plugins.policies import Block, Refuse

    model, masks = tiny(name), masks_of(1, 1, 0)
    stock = model.stock((0, 1, 2), False)
    with uvr_core.attach(model.pipe, concepts=model.bank(), detector=Later(masks), policy=Block()):
        blocked = model.run()
    with uvr_core.attach(
        model.pipe, concepts=model.bank(), detector=Later(masks), policy=Refuse(steps=1, then=Block())
    ) as reg:
        images = model.run()
        assert reg.report.refused == (0,)
    assert images[0] is None
    assert np.array_equal(images[1], blocked[1])
    assert not np.array_equal(images[1], stock[1])
    assert np.array_equal(images[2], stock[2])


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", ["flux"])
def test_a_bare_transformer_cannot_keep_an_image_back(tiny: Callable[[str], Tiny], name: str) -> None:
    model = tiny(name)
    with (
        model.attach(masks_of(0, 1, 2), "refuse", to=model.pipe.transformer),
        pytest.raises(uvr_core.UnsafeContent, match="image 1 "),
    ):
        model.run()


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", ["flux"])
def test_a_call_that_broke_off_leaves_no_report(tiny: Callable[[str], Tiny], name: str) -> None:
    model = tiny(name)
    with model.attach(masks_of(0, 1, 2), "observe") as reg:
        model.run()
        assert reg.report is not None
        with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
            model.pipe(prompt=list(PROMPTS), callback_on_step_end_tensor_inputs=["nothing"])
        assert reg.report is None


# ---------------------------------------------------------------------------------------------- guidance


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", ["sd3"])
@pytest.mark.parametrize("policy", [p for p, guided in ACTING if guided])
def test_the_unconditional_half_of_a_batch_is_left_alone(tiny: Callable[[str], Tiny], name: str, policy: str) -> None:
    model, seen = tiny(name), []
    handle = model.pipe.transformer.register_forward_hook(lambda m, a, out: seen.append(out[0].clone()))
    try:
        model.run(guided=True)
        stock = seen[0]
        seen.clear()
        with model.attach(masks_of(0, 1, 2), policy):
            model.run(guided=True)
    finally:
        handle.remove()
    assert stock.shape[0] == 6
    assert torch.equal(seen[0][:3], stock[:3])
    assert identical(seen[0][3:].numpy(), stock[3:].numpy()) == [True, False, True]


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", [n for n in PIPELINES if n != "sd3"])
def test_the_negative_pass_is_left_alone(tiny: Callable[[str], Tiny], name: str) -> None:
    """The first pass of each step follows the prompt; the second gives what the stock model gives for its input."""
    model, seen = tiny(name), []
    transformer = model.pipe.transformer

    def keep(module: torch.nn.Module, args: object, kwargs: dict[str, Any], out: Any) -> None:
        seen.append((kwargs, out[0].clone()))

    handle = transformer.register_forward_hook(keep, with_kwargs=True)
    try:
        with model.attach(masks_of(0, 1, 2), "block"):
            model.run(guided=True)
    finally:
        handle.remove()
    assert len(seen) == 2 * STEPS
    with torch.no_grad():
        same = [identical(transformer(**kwargs)[0].numpy(), out.numpy()) for kwargs, out in seen]
    assert same == [[True, False, True], [True, True, True]] * STEPS


def bias_of(call: AttentionCall, rows: slice) -> torch.Tensor:
    """(B, 1, N, keys) additive mask of a call's output rows, in float64."""
    keep = torch.ones((), dtype=torch.bool) if call.attn_mask is None else call.attn_mask
    assert keep.dtype == torch.bool
    full = keep.expand(len(call.query), 1, call.query.shape[2], call.key.shape[2])[:, :, rows]
    return torch.zeros(full.shape, dtype=torch.float64).masked_fill(~full, -torch.inf)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", PIPELINES)
def test_redirected_rows_see_the_unconditional_text(tiny: Callable[[str], Tiny], name: str) -> None:
    """In every block and step: softmax by hand over the rows' own image keys and the other pass's text."""
    model = tiny(name)
    with model.attach(masks_of(0, 1, 2), "redirect") as reg:
        calls = spied(reg)
        model.run(guided=True)
    blocks, batched = len(model.taps), name == "sd3"
    passes = [calls[i : i + blocks] for i in range(0, len(calls), blocks)]
    assert len(passes) == STEPS * (1 if batched else 2)
    located = torch.zeros(8, 8, dtype=torch.bool)
    located[1:6, 2:7] = True  # with the ring
    checked, lengths = 0, set()
    for step in range(STEPS):
        for block in range(blocks):
            call, edited = passes[step if batched else 2 * step][block]
            other = call if batched else passes[2 * step - 1][block][0] if step else None
            if edited is None:
                assert step == 0, "before the probe"
                continue
            mine, theirs = (4, 1) if batched else (1, 1)  # the second sample, in its half
            first = first_row(model, call.query.shape[2])
            image = slice(first, first + (2 if name in EDITING else 1) * PATCHES)
            rows = slice(first, first + PATCHES)
            k, v, bias = (
                [call.key[mine, :, image]],
                [call.value[mine, :, image]],
                [bias_of(call, rows)[mine, :, :, image]],
            )
            if other is not None:
                begin = first_row(model, other.query.shape[2])
                text = slice(PATCHES, None) if batched else slice(0, begin)
                k.append(other.key[theirs, :, text])
                v.append(other.value[theirs, :, text])
                bias.append(bias_of(other, slice(begin, begin + PATCHES))[theirs, :, :, text])
                lengths.add((call.key.shape[2], other.key.shape[2]))
            q = call.query[mine, :, rows].double()
            logits = q @ torch.cat(k, 1).double().mT * q.shape[-1] ** -0.5 + torch.cat(bias, -1)
            expected = logits.softmax(-1) @ torch.cat(v, 1).double()
            error = (edited[mine, :, rows].double() - expected).abs().amax((0, 2))
            assert error[located.flatten()].max() < 5e-6
            changed = (edited[mine] != call.output[mine]).any(-1).any(0)
            assert changed[rows][located.flatten()].any()
            assert changed.sum() == changed[rows][located.flatten()].sum()
            checked += 1
    assert checked >= blocks
    if name.startswith("qwen"):
        assert any(own != others for own, others in lengths), "the two passes' texts differ in length"


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", PIPELINES)
def test_redirect_without_guidance_withholds_the_images(tiny: Callable[[str], Tiny], name: str) -> None:
    model = tiny(name)
    step = 0 if name == "sd3" else 1
    with model.attach(masks_of(0, 1, 2), "redirect") as reg:
        for _ in range(2):
            with pytest.raises(uvr_core.UVRError, match=rf"unconditional pass.* at step {step}: turn guidance on"):
                model.run()
        assert reg.report is None
        assert model.run(guided=True).shape == (3, 64, 64, 3)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", ["sd3"])
def test_a_bare_transformer_regulates_both_halves_of_a_batch(tiny: Callable[[str], Tiny], name: str) -> None:
    """No pipeline tells which half follows the prompt: both are restricted where something is located."""
    model, seen = tiny(name), []
    transformer = model.pipe.transformer
    handle = transformer.register_forward_hook(lambda m, a, out: seen.append(out[0].clone()))
    masks = np.concatenate([masks_of(0, 1, 2), masks_of(0, 1, 2)])
    try:
        model.run(guided=True)
        stock = seen[0]
        seen.clear()
        with model.attach(masks, "block", to=transformer) as reg:
            model.run(guided=True)
            findings = reg.report.findings
    finally:
        handle.remove()
    assert identical(seen[0].numpy(), stock.numpy()) == [True, False, True, True, False, True]
    assert [f.located for f in findings] == [False, True, False] * 2
    assert [f.steps_regulated for f in findings] == [0, STEPS, 0] * 2
    with (
        model.attach(masks, "redirect", to=transformer),
        pytest.raises(uvr_core.UVRError, match="not to its transformer"),
    ):
        model.run(guided=True)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("attached_to", ["pipeline", "transformer"])
@pytest.mark.parametrize("name", ["flux", "qwen-image", "qwen-image-edit"])
def test_a_pass_named_uncond_is_left_alone_even_when_it_comes_first(
    tiny: Callable[[str], Tiny], name: str, attached_to: str
) -> None:
    model = tiny(name)
    transformer = model.pipe.transformer
    stock = model.forward()

    def both_passes() -> dict[str, torch.Tensor]:
        given = {}
        for branch in ("uncond", "cond"):
            with transformer.cache_context(branch):
                given[branch] = model.forward()
        return given

    if attached_to == "transformer":
        with model.attach(masks_of(0, 1, 2), "block", to=transformer):
            given = both_passes()
    else:  # inside a pipeline's run, which a pipeline with the opposite order of passes would open
        with model.attach(masks_of(0, 1, 2), "block") as reg:
            reg._interceptor._current.set(reg._begin(Run(reg.taps)))
            given = both_passes()
    assert identical(given["uncond"].numpy(), stock.numpy()) == [True, True, True]
    assert identical(given["cond"].numpy(), stock.numpy()) == [True, False, True]


# ---------------------------------------------------------------------------------------------- roles of tokens


def tap_at(model: Tiny, path: str, observer: Callable[[AttentionCall], torch.Tensor | None]) -> Taps:
    module = model.pipe.transformer.get_submodule(path)
    return Taps({path: module}, observer)


def moved_tokens(model: Tiny, row: Callable[[int], int]) -> list[list[int]]:
    """Which tokens of each sample's prediction change when one row of the last block's attention output does.

    The row is `row(number of queries)`, of the second sample.
    """
    stock = model.forward()

    def nudge(call: AttentionCall) -> torch.Tensor:
        output = call.output.clone()
        output[1, :, row(output.shape[2])] += 1.0
        return output

    taps = tap_at(model, model.taps[-1], nudge)
    try:
        nudged = model.forward()
    finally:
        taps.remove()
    return [np.flatnonzero(sample).tolist() for sample in (nudged != stock).any(-1)]


def first_row(model: Tiny, queries: int) -> int:
    """Of the output span; written out once more, so that the engine is not its own witness."""
    return 0 if model.name == "sd3" else queries - (2 if model.name in EDITING else 1) * PATCHES


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", PIPELINES)
def test_an_output_row_of_the_last_block_moves_its_own_patch_and_no_other(
    tiny: Callable[[str], Tiny], name: str
) -> None:
    model = tiny(name)
    for patch in (0, 1, 8, 29, 63):
        assert moved_tokens(model, lambda n, p=patch: first_row(model, n) + p) == [[], [patch], []]


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", EDITING)
def test_a_reference_row_of_the_last_block_moves_no_output_patch(tiny: Callable[[str], Tiny], name: str) -> None:
    model = tiny(name)
    for patch in (0, 29, 63):
        row = PATCHES + patch
        assert moved_tokens(model, lambda n, r=row: first_row(model, n) + r) == [[], [row], []]


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", PIPELINES)
def test_a_text_row_of_the_last_block_moves_nothing(tiny: Callable[[str], Tiny], name: str) -> None:
    model = tiny(name)
    for row in (0, 3):
        assert moved_tokens(model, lambda n, r=row: PATCHES + r if name == "sd3" else r) == [[], [], []]


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", PIPELINES)
def test_the_engine_hands_out_and_writes_those_rows(tiny: Callable[[str], Tiny], name: str) -> None:
    """Recorded features are the rows of the span above, in order, and beside each the reference row that faces it; the
    adapter's counts and grids are the true ones."""
    model = tiny(name)
    assert model.layout() == Layout(
        (2 if name in EDITING else 1) * PATCHES, PATCHES, (8, 8), ((8, 8),) if name in EDITING else ()
    )
    calls: list[AttentionCall] = []
    taps = tap_at(model, model.taps[-1], lambda call: calls.append(call))
    model.forward()
    taps.remove()
    recorded: list[torch.Tensor] = []
    with uvr_core.attach(model.pipe.transformer) as reg:
        with reg.recording(lambda call: recorded.append(features(call)), [model.taps[-1]]):
            model.forward()
    first = first_row(model, calls[0].output.shape[2])
    rows = calls[0].output[:, :, first : first + PATCHES].transpose(1, 2).flatten(2)
    if name in EDITING:
        facing = calls[0].output[:, :, first + PATCHES : first + 2 * PATCHES].transpose(1, 2).flatten(2)
        rows = torch.cat([rows, facing], -1)
    assert len(recorded) == 1
    assert torch.equal(recorded[0], rows)


def shift_values(model: Tiny, role: str) -> Any:
    """Add 1 to the values of the last block's text or reference tokens; returns the handle that takes it back."""
    attention = model.pipe.transformer.get_submodule(model.taps[-1])
    if model.adapter.name == "flux":  # single-stream: one projection for text, output and reference
        projection = attention.to_v
        first = first_row(model, model.called()["encoder_hidden_states"].shape[1] + model.layout().image)
        rows = slice(0, first) if role == "text" else slice(first + PATCHES, None)
    else:
        projection = attention.add_v_proj if role == "text" else attention.to_v
        rows = slice(None) if role == "text" else slice(PATCHES, None)

    def shift(module: torch.nn.Module, args: object, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[:, rows] += 1.0
        return out

    return projection.register_forward_hook(shift)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize(("name", "role"), [(n, "text") for n in PIPELINES] + [(n, "reference") for n in EDITING])
def test_a_blocked_patch_receives_no_text_and_no_reference(tiny: Callable[[str], Tiny], name: str, role: str) -> None:
    """The values of those tokens in the last block change: only under "block" do the located patches not."""
    model = tiny(name)
    located = torch.zeros(3, 8, 8, dtype=torch.bool)
    located[1, 1:6, 2:7] = True  # with its ring
    located = located.flatten(1)
    moved = {}
    for policy in ("observe", "block"):
        with model.attach(masks_of(0, 1, 2), policy, to=model.pipe.transformer) as reg:
            before = model.forward()
            reg.reset()  # a new generation: located anew at the probe, not before it
            handle = shift_values(model, role)
            try:
                after = model.forward()
            finally:
                handle.remove()
        moved[policy] = (after - before).abs().amax(-1)[:, :PATCHES]
    assert moved["observe"][located].max() > 1e-3
    assert moved["block"][located].max() < 1e-6
    assert torch.equal(moved["block"][[0, 2]], moved["observe"][[0, 2]])
    assert (moved["block"][1][~located[1]] > 1e-3).any()
