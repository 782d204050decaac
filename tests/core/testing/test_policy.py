"""The conformance kit: every built-in keeps the contract, and what breaks it is caught by the check that should."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from published import PUBLISHED, Published
from tiny import example

from uvr_core import plugins, session
from uvr_core.adapter import Adapter, Arguments, Layout
from uvr_core.errors import ConformanceError, UnsafeContent, UVRError
from uvr_core.protocols import CallInfo, ColumnScale, Direction, FlowEdit, Located, row_classes
from uvr_core.regulator import Regulator
from uvr_core.seam import AttentionCall
from uvr_core.session import Session
from uvr_core.testing import Conformance, Example, Status, check_adapter, check_detector, check_policy, patches
from uvr_core.testing.detector import random_bank
from uvr_core.testing.tiny import tiny_example

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = {
    "flux": "flux", "flux-kontext": "flux", "sd3": "sd3", "qwen-image": "qwen-image", "qwen-image-edit": "qwen-image",
}  # fmt: skip
BUILT_IN = ("builtin-adapters", "builtin-plugins")


def built_in(kind: str) -> list[str]:
    return sorted(name for name, (_, origin) in plugins.registry().names(kind).items() if origin in BUILT_IN)


def get(kind: str, name: str) -> Any:
    found = plugins.registry().get(kind, name)
    return found() if isinstance(found, type) else found


def failed(check: Callable[..., Conformance], *arguments: Any, **options: Any) -> dict[str, str]:
    """{check: message} of a run that must not pass."""
    with pytest.raises(ConformanceError) as caught:
        check(*arguments, **options)
    report = caught.value.report
    assert isinstance(report, Conformance)
    for outcome in report.failures:
        assert f"{outcome.name}: {outcome.message}" in str(caught.value)
    return {outcome.name: outcome.message for outcome in report.failures}


# ---------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("name", EXAMPLES)
def test_built_in_adapters(name: str) -> None:
    report = check_adapter(get("adapter", EXAMPLES[name]), functools.partial(example, name))
    skipped = {o.name for o in report.outcomes if o.status is not Status.PASSED}
    assert skipped == {"published-size"}


def test_every_built_in_adapter_has_an_example() -> None:
    assert set(EXAMPLES.values()) == set(built_in("adapter"))


def at_published_size(model: Published) -> Example:
    return Example(model.build(), lambda height, width, batch, sigma: model.inputs())


@pytest.mark.parametrize("source", ["FLUX.1-dev", "stable-diffusion-3.5-medium", "Qwen-Image"])
def test_published_size(source: str) -> None:
    model = next(m for m in PUBLISHED if m.source.endswith(source))
    report = check_adapter(
        get("adapter", model.adapter), functools.partial(example, model.adapter),
        published=functools.partial(at_published_size, model),
    )  # fmt: skip
    assert report["published-size"].status is Status.PASSED


def swapped(layout: Callable[[Arguments], Layout]) -> Callable[[Arguments], Layout]:
    def wrong(arguments: Arguments) -> Layout:
        found = layout(arguments)
        return attrs.evolve(found, grid=found.grid[::-1])

    return wrong


def without_references(layout: Callable[[Arguments], Layout]) -> Callable[[Arguments], Layout]:
    def wrong(arguments: Arguments) -> Layout:
        found = layout(arguments)
        return Layout(found.output, found.output, found.grid)

    return wrong


FLUX, SD3, QWEN = (get("adapter", name) for name in ("flux", "sd3", "qwen-image"))
BROKEN = {
    "image at the wrong end": (
        "sd3", attrs.evolve(SD3, image_at="end"), {"last-block", "earlier-blocks", "edit-lands"},
    ),
    "image at the wrong end, one stream": ("flux", attrs.evolve(FLUX, image_at="start"), {"last-block", "edit-lands"}),
    "references taken for the output": ("flux", attrs.evolve(FLUX, output_first=False), {"last-block", "edit-lands"}),
    "references forgotten": (
        "qwen-image", attrs.evolve(QWEN, layout=without_references(QWEN.layout)), {"layout", "text-span", "last-block"},
    ),
    "a stream of blocks missing": (
        "flux", attrs.evolve(FLUX, attention=("transformer_blocks.*.attn",), probes=()), {"no-block-missed"},
    ),
    "one block missing": (
        "qwen-image", attrs.evolve(QWEN, attention=("transformer_blocks.0.attn",)), {"no-block-missed", "last-block"},
    ),
    "blocks in the wrong order": (
        "flux", attrs.evolve(FLUX, attention=FLUX.attention[::-1]), {"execution-order"},
    ),
    "image-only attention tapped": (
        "sd3", attrs.evolve(SD3, attention=("transformer_blocks.*.attn", "transformer_blocks.*.attn2")),
        {"taps-fire-once"},
    ),
    "no such blocks": ("sd3", attrs.evolve(SD3, attention=("blocks.*.attn",)), {"taps-fire-once", "execution-order"}),
    "probes that are no taps": ("flux", attrs.evolve(FLUX, probes=("single_blocks.*.attn",)), {"probes"}),
    "time in thousandths": ("flux", attrs.evolve(FLUX, time=lambda a: a["timestep"] / 1000), {"time"}),
    "time not scaled": ("sd3", attrs.evolve(SD3, time=lambda a: a["timestep"]), {"time"}),
    "time turned round": ("qwen-image", attrs.evolve(QWEN, time=lambda a: 1 - a["timestep"]), {"time"}),
    "time of one sample": ("sd3", attrs.evolve(SD3, time=lambda a: a["timestep"][:1] / 1000), {"time"}),
    "rows and columns swapped": ("sd3", attrs.evolve(SD3, layout=swapped(SD3.layout)), {"layout"}),
    "guidance halves swapped": ("sd3", attrs.evolve(SD3, guidance="batched:cu"), {"guidance"}),
    "guidance halves not seen": ("sd3", attrs.evolve(SD3, guidance="two_pass"), {"guidance"}),
    "no text among the queries": ("flux", attrs.evolve(FLUX, text_output=False), {"text-span"}),
    "another class": ("flux", attrs.evolve(FLUX, model="FluxModel"), {"recognised", "taps-fire-once"}),
    "an argument that is not there": ("flux", attrs.evolve(FLUX, time=lambda a: a["sigmas"]), {"time", "no-edit"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_adapter_is_caught(fault: str) -> None:
    name, adapter, wanted = BROKEN[fault]
    found = failed(check_adapter, adapter, functools.partial(example, name))
    assert wanted <= set(found), found


def test_faults_are_told_apart() -> None:
    """A fault that one check is there for fails that check alone."""
    alone = ("blocks in the wrong order", "probes that are no taps", "time in thousandths", "guidance halves swapped")
    for fault in alone:
        name, adapter, wanted = BROKEN[fault]
        found = set(failed(check_adapter, adapter, functools.partial(example, name)))
        assert found - wanted <= {"last-block", "edit-lands"} if "order" in fault else found == wanted, fault


def test_the_message_says_where_the_picture_lies() -> None:
    _, adapter, _ = BROKEN["image at the wrong end"]
    message = failed(check_adapter, adapter, functools.partial(example, "sd3"))["last-block"]
    assert "transformer_blocks.1.attn" in message
    assert "row 0: expected [], got [0]" in message
    assert "patch 0 lies at row 0" in message


@pytest.mark.parametrize("declared", ["batched:uc", "batched:cu", "two_pass", "single"])
def test_guidance_without_a_pipeline(declared: str) -> None:
    """The example says how the family guides; an adapter that says otherwise is caught."""

    def bare() -> Example:
        return attrs.evolve(example("qwen-image"), pipeline=None, sample=None, guidance=declared)

    check_adapter(attrs.evolve(QWEN, guidance=declared), bare)
    same = {"single": "two_pass", "two_pass": "single"}.get(declared)
    for other in {"batched:uc", "batched:cu", "two_pass"} - {declared, same}:
        assert set(failed(check_adapter, attrs.evolve(QWEN, guidance=other), bare)) == {"guidance"}


# ---- the engine: what the adapter's checks also vouch for


def shifted_span(self: Session, tokens: int, layout: Layout, stock: Any = Session._output_span) -> slice:
    span = stock(self, tokens, layout)
    return slice(span.start - 1, span.stop - 1)


def rounded(*arguments: Any, stock: Any = session.restricted_rows, **options: Any) -> torch.Tensor:
    return stock(*arguments, **options) * 1.01


def nudged(self: Session, call: AttentionCall, stock: Any = Session.on_call) -> torch.Tensor | None:
    edited = stock(self, call)
    return call.output * (1 + 1e-6) if edited is None else edited


def kept(self: Regulator, stock: Any = Regulator.detach) -> None:
    hook = next(self._transformer.modules()).register_forward_hook(lambda *_: None)
    stock(self)
    assert hook is not None


FAULTS = {
    "edit-lands": (Session, "_output_span", shifted_span),
    "neutral-edit": (session, "restricted_rows", rounded),
    "no-edit": (Session, "on_call", nudged),
    "detach": (Regulator, "detach", kept),
}


@pytest.mark.parametrize("check", FAULTS)
def test_a_broken_engine_is_caught(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong = FAULTS[check]
    monkeypatch.setattr(owner, name, wrong)
    found = failed(check_adapter, FLUX, functools.partial(example, "flux"))
    assert check in found


def test_a_block_without_effect_is_named() -> None:
    def dead() -> Example:
        made = example("sd3")
        for parameter in made.model.get_submodule("transformer_blocks.1.attn.to_out.0").parameters():
            parameter.zero_()
        return made

    assert "are its weights zero?" in failed(check_adapter, SD3, dead)["last-block"]


def test_patches_of_a_picture() -> None:
    picture = torch.arange(24.0).reshape(1, 1, 4, 6)
    found = patches(picture, (2, 3))
    assert found.shape == (1, 6, 4)
    assert found[0, 4].tolist() == [14.0, 15.0, 20.0, 21.0]  # rows 2 and 3, columns 2 and 3
    assert torch.equal(patches(picture[:, :, None], (2, 3)), found)
    assert torch.equal(patches(torch.arange(10.0).reshape(1, 10, 1), (2, 3))[0, :, 0], torch.arange(6.0))


# ---------------------------------------------------------------------------------------------- the report


def test_expected_failures() -> None:
    bare = functools.partial(example, "sd3")
    adapter = attrs.evolve(SD3, guidance="batched:cu")
    report = check_adapter(adapter, bare, expected_failures={"guidance": "halves to be sorted out"})
    assert report.ok
    assert report["guidance"].status is Status.EXPECTED
    assert "halves to be sorted out" in report["guidance"].message
    assert "guidance: expected failure: halves to be sorted out" in str(report)


@pytest.mark.parametrize("check", ["guidance", "published-size"])
def test_an_expected_failure_that_does_not_fail_is_reported(check: str) -> None:
    found = failed(check_adapter, SD3, functools.partial(example, "sd3"), expected_failures={check: "an old fault"})
    assert set(found) == {check}
    assert "although expected to fail: an old fault" in found[check]


def test_an_expected_failure_of_no_check_is_refused() -> None:
    with pytest.raises(UVRError, match="no check 'guidence'; did you mean 'guidance'"):
        check_adapter(SD3, functools.partial(example, "sd3"), expected_failures={"guidence": "?"})


def test_the_kit_needs_no_test_framework() -> None:
    code = "import uvr_core.testing, uvr_core.doctor.draft, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {"pytest", "uvr_adapters", "uvr_plugins", "uvr_zoo", "diffusers"} & loaded


def test_global_random_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    check_adapter(SD3, functools.partial(example, "sd3"))
    check_detector(get("detector", "anchor"))
    check_policy(get("policy", "uvr"))
    assert torch.equal(state, torch.random.get_rng_state())


# ---------------------------------------------------------------------------------------------- detectors

GIVEN = "its masks are given, for a fixed batch"
EXPECTED = {
    "oracle": {
        "shape-and-dtype": GIVEN, "samples-independent": GIVEN, "patches-move-along": GIVEN, "deterministic": GIVEN,
        "finite": "±inf is its score",
    }
}  # fmt: skip


@pytest.mark.parametrize("name", built_in("detector"))
def test_built_in_detectors(name: str) -> None:
    detector = get("detector", name)
    if name == "oracle":
        detector = attrs.evolve(detector, masks=torch.tensor([[True, False, True] * 2] * 3))
    bank = random_bank()
    bank.tensors[f"token/{bank.probes[0]}"] = torch.randn(3, bank.width, generator=torch.Generator().manual_seed(2))
    check_detector(detector, bank=bank, expected_failures=EXPECTED.get(name))


class Plain:
    """A sound detector that the broken ones change."""

    name = "plain"

    def scores(self, features: torch.Tensor, sigma: float, bank: Any, probe: str) -> torch.Tensor:
        return features @ bank.tensor("anchors", probe).mean(0)


def broken_detector(change: Callable[..., Any]) -> object:
    stock = Plain()

    class Broken(Plain):
        def scores(self, features: torch.Tensor, sigma: float, bank: Any, probe: str) -> Any:
            return change(stock.scores(features, sigma, bank, probe), features, bank, probe)

    return Broken()


def centred(scores: torch.Tensor, features: torch.Tensor, *_: Any) -> torch.Tensor:
    return scores - scores.mean()


def in_place(scores: torch.Tensor, features: torch.Tensor, *_: Any) -> torch.Tensor:
    features.sub_(features.mean())
    return scores


def on_the_bank(scores: torch.Tensor, features: torch.Tensor, bank: Any, probe: str) -> torch.Tensor:
    bank.tensor("anchors", probe).mul_(1.5)
    return scores


DETECTORS = {
    "averaged over the batch": (centred, {"samples-independent"}),
    "features changed in place": (in_place, {"inputs-unchanged"}),
    "bank changed in place": (on_the_bank, {"inputs-unchanged", "deterministic"}),
    "double": (lambda s, *_: s.double(), {"shape-and-dtype"}),
    "one score per image": (lambda s, *_: s.mean(1), {"shape-and-dtype"}),
    "NaN without a signal": (lambda s, *_: s / s.abs().amax(1, keepdim=True), {"finite"}),
    "noise": (lambda s, *_: s + torch.rand_like(s), {"deterministic", "no-global-random"}),
    "position": (lambda s, *_: s + torch.arange(s.shape[1]), {"patches-move-along"}),
    "none": (lambda s, *_: None, {"shape-and-dtype"}),
}


@pytest.mark.parametrize("fault", DETECTORS)
def test_a_broken_detector_is_caught(fault: str) -> None:
    change, wanted = DETECTORS[fault]
    found = failed(check_detector, broken_detector(change))
    assert wanted <= set(found), found


def test_a_detector_may_look_at_other_patches() -> None:
    position = broken_detector(DETECTORS["position"][0])
    assert check_detector(position, per_patch=False)["patches-move-along"].status is Status.SKIPPED


def test_a_detector_without_scores_is_caught() -> None:
    assert "expected a method, got None" in failed(check_detector, object())["protocol"]


def test_a_detector_is_given_its_own_bank() -> None:
    bank = random_bank(heads=3, head_dim=4, probe="layers.1.attn")
    check_detector(Plain(), bank=bank, probe="layers.1.attn", grids=((3, 5),))


# ---------------------------------------------------------------------------------------------- policies


@pytest.mark.parametrize("name", built_in("policy"))
def test_built_in_policies(name: str) -> None:
    check_policy(get("policy", name))


def test_project_with_a_direction() -> None:
    """The bank of the kit's model has no direction; here the call gives one, and rows of both signs."""
    project = get("policy", "project")
    generator = torch.Generator().manual_seed(6)
    vector, offset = torch.randn(32, generator=generator), torch.randn(1, 15, generator=generator)
    given = []

    class Directed:
        name, ring, margin = "directed", project.ring, project.margin

        def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
            patches = located.core.shape[1]
            direction = call.direction() or Direction(vector, offset[:, :patches].expand(len(located.core), -1))
            edit = project.edit(located, attrs.evolve(call, direction=lambda: direction))
            given.append(edit.projection)
            return edit

    report = check_policy(Directed())
    assert {o.status for o in report.outcomes} == {Status.PASSED}
    assert all(projection is not None for projection in given)


@pytest.mark.parametrize("name", ["sd3", "qwen-image"])
def test_a_policy_on_a_model_of_ones_own(name: str) -> None:
    check_policy(
        get("policy", "selective"), make_example=functools.partial(example, name), adapter=get("adapter", name)
    )


class Cut:
    """A sound policy that the broken ones change."""

    name = "cut"
    ring = 1

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        return FlowEdit(row_classes(located), ((1.0,) * 4, (0.0, 1.0, 1.0, 0.0), (0.5, 1.0, 1.0, 0.5)))


def broken_policy(change: Callable[[FlowEdit, Located, CallInfo], Any]) -> object:
    class Broken(Cut):
        def edit(self, located: Located, call: CallInfo) -> Any:
            return change(Cut.edit(self, located, call), located, call)  # type: ignore[arg-type]

    return Broken()


def table(edit: FlowEdit, factor: float) -> FlowEdit:
    return attrs.evolve(edit, table=((1.0,) * 4, (factor, 1.0, 1.0, 0.0), (0.5, 1.0, 1.0, 0.5)))


def mask_in_place(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    located.ring.logical_or_(located.core)
    return edit


def contrast_in_place(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    return attrs.evolve(edit, text_factor=call.text_contrast().nan_to_num_(0.0, 9.0).div_(9.0).clamp_(0, 1))


def dither(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    return attrs.evolve(edit, text_factor=torch.rand(len(located.core), call.text))


def by_area(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    return table(edit, 1 - float(located.core.float().mean()))


def everything(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    return attrs.evolve(edit, row_class=torch.ones_like(edit.row_class))


POLICIES = {
    "negative factor": (lambda e, *_: table(e, -0.5), {"factors"}),
    "NaN factor": (lambda e, *_: table(e, float("nan")), {"factors"}),
    "short table": (lambda e, *_: attrs.evolve(e, table=((1.0,) * 3,) * 3), {"shapes"}),
    "short columns": (lambda e, *_: attrs.evolve(e, columns=ColumnScale(((1.0,) * 4,) * 3)), {"shapes"}),
    "share above 1": (lambda e, *_: attrs.evolve(e, alpha=(0.0, 1.5, 0.0)), {"factors"}),
    "noise on stock rows alone": (lambda e, *_: attrs.evolve(e, alpha=(0.0, 0.5)), {"shapes"}),
    "a factor of text tokens for references": (
        lambda e, located, call: attrs.evolve(e, reference_factor=torch.ones(len(located.core), call.text)), {"shapes"},
    ),
    "float classes": (lambda e, *_: attrs.evolve(e, row_class=e.row_class.float()), {"shapes"}),
    "rows that were not located": (everything, {"located-rows-only", "stock-samples"}),
    "a factor by the batch's area": (by_area, {"samples-independent"}),
    "masks changed in place": (mask_in_place, {"inputs-unchanged"}),
    "contrast changed in place": (contrast_in_place, {"inputs-unchanged"}),
    "random factors": (dither, {"deterministic", "no-global-random"}),
    "a tensor": (lambda e, *_: e.row_class, {"protocol"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", POLICIES)
def test_a_broken_policy_is_caught(fault: str) -> None:
    change, wanted = POLICIES[fault]
    found = failed(check_policy, broken_policy(change))
    assert wanted <= set(found), found


def test_a_sound_policy_passes() -> None:
    report = check_policy(Cut())
    assert {o.status for o in report.outcomes} == {Status.PASSED}


def test_a_policy_with_bad_mask_options_is_caught() -> None:
    policy = Cut()
    policy.ring = -1
    assert "ring: expected a number of patches >= 0, got -1" in failed(check_policy, policy)["mask-options"]


def test_a_policy_may_refuse() -> None:
    class Refuse(Cut):
        def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
            raise UnsafeContent("located", concept="x")

    assert check_policy(Refuse())["stock-patches"].status is Status.SKIPPED


def test_edits_that_leave_their_rows_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "_output_span", shifted_span)
    assert "stock-patches" in failed(check_policy, Cut())


def test_samples_that_are_not_left_stock_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "on_call", nudged)

    class Nothing(Cut):
        def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
            return None

    assert "stock-samples" in failed(check_policy, Nothing())


def test_an_example_of_a_class_by_name() -> None:
    made = tiny_example("FluxTransformer2DModel")
    assert made.references
    assert isinstance(FLUX, Adapter)
    assert check_adapter(FLUX, lambda: tiny_example("FluxTransformer2DModel")).ok
