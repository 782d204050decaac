"""Every adapter on a tiny model of its class in diffusers' own pipelines, and on the published configurations.

What must move, and in which rows, is written down in tests/families and not taken from the adapter.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import attrs
import diffusers
import pytest
import torch
from conformance import built_in, get
from documents import models
from families import FAMILIES
from families.family import PROMPTS, Drawing, Family, Release, draw
from packaging.version import Version
from torch.fx.experimental import _config as meta_config
from torch.utils._pytree import tree_map_only

import uvr_core
from uvr_core.intercept import forwards
from uvr_core.intercept.calls import AttentionCall
from uvr_core.protocols import CallInfo, FlowEdit, KeyWeights, Located, MaskOptions, Reweight, row_classes
from uvr_core.testing import Status, check_adapter
from uvr_core.testing.given import Edit, Given, regulated
from uvr_core.tokens import Role, TokenSpans

pytestmark = pytest.mark.usefixtures("one_thread")

NEGATIVE = "a blue dog"  # as long as neither prompt


def skip_unless_there(*names: str, since: str = "") -> None:
    missing = [name for name in names if not hasattr(diffusers, name)]
    if missing:
        pytest.skip(f"diffusers {diffusers.__version__} has no {', '.join(missing)}")
    if since and Version(diffusers.__version__) < Version(since):
        pytest.skip(f"{names[-1]}: needs diffusers {since}, this is {diffusers.__version__}")


@attrs.frozen
class Case:
    """One run of a pipeline: with or without guidance and references."""

    family: Family
    drawing: Drawing
    guided: bool
    references: int

    def __str__(self) -> str:
        guided = "guided" if self.guided else "unguided"
        return f"{self.drawing.pipeline}{self.drawing.note}-{guided}-{self.references}"

    @property
    def negative(self) -> str | None:
        return NEGATIVE if self.guided else None

    @property
    def prompts(self) -> tuple[str, ...]:
        return PROMPTS[: 1 if self.guided and self.drawing.guides_one else self.drawing.batch]

    @property
    def parts(self) -> list[str]:
        """Letters of each forward of a run's batch parts."""
        step = list(self.drawing.parts if self.guided else ("c",))
        last = list(self.drawing.truncated) if self.guided and self.drawing.truncated else step
        steps = step * (self.drawing.steps - 1) + last
        return ["-"] * (self.drawing.before * self.references * len(self.prompts)) + steps


CASES = [
    Case(family, drawing, guided, references)
    for family in FAMILIES
    for drawing in family.drawings
    for guided in (True, False)
    if (drawing.parts if guided else drawing.unguided)
    for references in drawing.references
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_drawing = pytest.mark.parametrize(  # once, unguided where it can be, without references
    "case", {id(case.drawing): case for case in CASES if not case.references}.values(), ids=str
)
each_family = pytest.mark.parametrize("family", FAMILIES, ids=[family.model for family in FAMILIES])
RELEASES = [(family, release) for family in FAMILIES for release in family.releases]


@functools.cache
def built(family: Family, drawing: Drawing) -> Any:
    """The pipeline; each test leaves it detached."""
    skip_unless_there(*drawing.needs, family.model, drawing.pipeline, since=drawing.since)
    return drawing.build(family.transformer(drawing))


def run(
    case: Case, prompts: tuple[str, ...] | None = None, negative: str | None = None, steps: int = 0
) -> torch.Tensor:
    """Latents of one run."""
    negative = negative if negative is not None else case.negative
    prompts = prompts or case.prompts
    return draw(built(case.family, case.drawing), case.drawing, prompts, negative, case.references, steps)


@attrs.frozen(eq=False)
class Ran:
    """One forward: its arguments as they were before it, and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def as_patches(case: Case, output: Any) -> torch.Tensor:
    """What a forward returned, as (B, N, C)."""
    output = output[0]
    output = torch.stack(list(output)) if isinstance(output, list) else output
    return case.family.patches(output, case.drawing.grid)


@contextmanager
def watched(case: Case) -> Iterator[list[Ran]]:
    """Every forward of the transformer in a run."""
    transformer, ran, before = built(case.family, case.drawing).transformer, [], []

    def remember(module: Any, args: Any, kwargs: Any) -> None:
        before.append(copy.deepcopy((args, kwargs)))

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        ran.append(Ran(*before.pop(), tree_map_only(torch.Tensor, torch.clone, (output[0],))))

    handles = [
        transformer.register_forward_pre_hook(remember, with_kwargs=True),
        transformer.register_forward_hook(keep, with_kwargs=True),
    ]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def located(case: Case) -> torch.Tensor:
    """(B, N): other patches in each sample."""
    height, width = case.drawing.grid
    mask = torch.zeros(2, height * width, dtype=torch.bool)
    mask[0, 1] = mask[1, -1] = mask[1, -1 - width] = True
    return mask[: len(case.prompts)]


@each_case
def test_exactly_the_edited_patches_move_in_the_conditional_part_alone(case: Case) -> None:
    """Every forward of a run is held against the stock model on the same input."""
    pipe, mask = built(case.family, case.drawing), located(case)
    last = list(get("adapter", case.family.adapter).taps(pipe.transformer))[-1]
    with watched(case) as ran, regulated(pipe, None, Given(mask), Edit(noise=1.0, only=last)) as reg:
        run(case)
        assert reg.adapter.name == case.family.adapter
        assert reg.adapter.drives(type(pipe))
    assert len(ran) == len(case.parts)
    for forward, letters in zip(ran, case.parts, strict=True):
        with torch.no_grad():
            stock = pipe.transformer(*forward.args, **forward.kwargs)
        if letters == "-":
            assert torch.equal(forward.output[0], stock[0])
            continue
        moved = (as_patches(case, forward.output) - as_patches(case, stock)).abs().amax(-1)  # (B, N)
        for letter, part in zip(letters, moved.chunk(len(letters)), strict=True):
            if letter == "c":
                assert torch.equal(part > 1e-3 * part.max(), mask), f"forward {len(ran)}: {part}"
            else:
                assert not part.any(), f"part {letter!r} moved: {part}"


class Cut:
    """A policy that cuts located rows off from all text, and from references, which see it, in every block."""

    masks = MaskOptions(ring=0)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit:
        return FlowEdit(row_classes(located), Reweight(core=KeyWeights(text=0.0, reference=0.0)))


@each_drawing
def test_text_reaches_the_picture_in_joint_attention_and_where_the_adapter_says(case: Case) -> None:
    """With every patch cut off from all text another prompt draws the same picture, unless there is another route."""
    pipe, (height, width) = built(case.family, case.drawing), case.drawing.grid
    everything = torch.ones(len(case.prompts), height * width, dtype=torch.bool)
    drawn = []
    for prompts in (("a cat", "a dog on the mat"), ("a sun", "a pig in the box")):  # of equal length
        with watched(case) as ran, regulated(pipe, None, Given(everything), Cut()):
            run(case, prompts[: len(case.prompts)], steps=1)
        forward, letters = next(pair for pair in zip(ran, case.parts, strict=False) if "c" in pair[1])
        drawn.append(as_patches(case, forward.output).chunk(len(letters))[letters.index("c")])
    change = float((drawn[0] - drawn[1]).abs().max() / drawn[0].abs().max())
    assert change < 1e-5 or get("adapter", case.family.adapter).routes, f"{change:.2g} of the maximum"


@each_case
def test_the_parts_are_as_written(case: Case) -> None:
    """On the stock pipeline: what the letters say follows the prompt does, and does not follow the negative prompt."""

    def first_step(prompts: tuple[str, ...], negative: str | None) -> list[torch.Tensor]:
        with watched(case) as ran:
            run(case, prompts, negative, steps=1)
        seen = zip(ran, case.parts, strict=False)
        return [
            part
            for forward, parts in seen
            if parts != "-"
            for part in as_patches(case, forward.output).chunk(len(parts))
        ]

    stock = first_step(case.prompts, case.negative)
    others = first_step(("a sun", "a car that stands on the right")[: len(case.prompts)], case.negative)
    changed = [not torch.allclose(a, b, atol=1e-5) for a, b in zip(stock, others, strict=True)]
    names = list("".join(case.drawing.parts if case.guided else "c"))
    assert changed == [name == "c" for name in names], "under other prompts"
    if case.guided:
        others = first_step(case.prompts, "a red cup")
        changed = [not torch.allclose(a, b, atol=1e-5) for a, b in zip(stock, others, strict=True)]
        assert changed == [name == "u" for name in names], "under another negative prompt"


@each_case
def test_attached_and_detached_it_draws_what_the_stock_pipeline_draws(case: Case) -> None:
    """Bitwise: nothing looked for, nothing located, detached after an edit. Every tap fires in every forward."""
    pipe = built(case.family, case.drawing)
    stock, nothing = run(case), torch.zeros_like(located(case))
    modules = {name: module for name, module in pipe.transformer.named_modules() if hasattr(module, "processor")}
    processors = {name: module.processor for name, module in modules.items()}
    with uvr_core.attach(pipe) as reg:
        assert torch.equal(run(case), stock)
        forwards_seen = sum(letters != "-" for letters in case.parts)
        assert (reg.report.steps, reg.report.fired) == (case.drawing.steps, len(reg.taps) * forwards_seen)
    with regulated(pipe, None, Given(nothing), Edit(noise=1.0)):
        assert torch.equal(run(case), stock)
    with regulated(pipe, None, Given(located(case)), Edit(noise=1.0)):
        assert not torch.equal(run(case), stock)
    assert torch.equal(run(case), stock)
    assert {name: module.processor for name, module in modules.items()} == processors
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.transformer.modules())
    assert type(pipe).__name__ == case.drawing.pipeline


@each_family
def test_the_contract(family: Family) -> None:
    """The conformance kit, guidance on the real pipeline."""
    needed = [name for drawing in family.drawings[:1] for name in (drawing.pipeline, *drawing.needs)]
    skip_unless_there(family.model, *needed)
    report = check_adapter(get("adapter", family.adapter), family.example)
    batched = get("adapter", family.adapter).guidance.startswith("batched")
    unasked = {"published-size"} if batched else {"published-size", "guidance-parts"}
    skipped = {o.name for o in report.outcomes if o.status is not Status.PASSED}
    assert skipped - {"ragged"} == unasked  # where nothing tells the lengths of prompts
    page = models()
    assert page.shown()[family.adapter] == page.kit(report), "docs/models.md: PYTHONPATH=tests python tools/models.py"


def repeated(
    tensor: torch.Tensor, repeats: Any, dim: int = 0, stock: Any = torch.Tensor.repeat_interleave, **options: Any
) -> torch.Tensor:
    """`Tensor.repeat_interleave`, also of a meta tensor by numbers that are on the CPU."""
    if not (tensor.is_meta and isinstance(repeats, torch.Tensor)):
        return stock(tensor, repeats, dim=dim, **options)
    return tensor.index_select(dim, torch.repeat_interleave(torch.arange(tensor.shape[dim]), repeats).to(tensor.device))


@contextmanager
def on_meta(transformer: torch.nn.Module, on_cpu: tuple[str, ...]) -> Iterator[None]:
    """Move the arguments to the meta device after UVR has read them: its pre-hook was registered earlier."""

    def move(module: Any, args: Any, kwargs: Any) -> Any:
        kept = {name: kwargs[name] for name in on_cpu if name in kwargs}
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        return args, kwargs | kept

    readers = [transformer.norm_out, *transformer.transformer_blocks] if on_cpu else []  # of masks made on the CPU
    handles = [m.register_forward_pre_hook(move, with_kwargs=True) for m in [transformer, *readers]]
    try:
        with torch.no_grad(), meta_config.patch(meta_nonzero_assume_all_nonzero=True):  # a mask selects everything
            yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("family", "release"), RELEASES, ids=[release.source for _, release in RELEASES])
def test_one_forward_at_the_published_size(family: Family, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, at 64 x 64 patches (1024 x 1024 pixels): taps, grids, and nothing but text beside them."""
    skip_unless_there(family.model, since=release.since)
    with torch.device("meta"):
        transformer = getattr(diffusers, family.model)(**release.config).eval()
    release.prepare(transformer)
    references = {"references": ((64, 64),) * release.references} if family.references else {}
    arguments = family.inputs(release.config, 64, 64, batch=1, sigma=0.75, **references)
    calls: list[AttentionCall] = []
    stock = forwards.intervene
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # there is none on meta
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", repeated)
    monkeypatch.setattr(forwards, "intervene", lambda call, *rest: (calls.append(call), stock(call, *rest))[1])
    with uvr_core.attach(transformer) as reg, on_meta(transformer, release.on_cpu), reg.generation():
        transformer(**arguments)
        read = reg._interceptor.intervention.run
        assert (len(reg.taps), reg.adapter.name) == (release.taps, family.adapter)
    assert reg.report.fired == release.taps
    assert read.sigmas == [0.75]
    assert (read.layout.grid, read.layout.references) == ((64, 64), ((64, 64),) * release.references)
    joint = [call for call in calls if call.key.shape[2] > read.layout.image]
    assert {call.path for call in joint} == set(reg.taps)
    texts = {TokenSpans.of(reg.adapter, read.layout, call.key.shape[2]).count(Role.TEXT) for call in joint}
    assert texts == {release.text}


def test_every_built_in_adapter_has_a_family_and_every_pipeline_is_listed() -> None:
    elsewhere = {"sd3", "qwen-image"}  # test_contract.py, and the zoo's pipelines in tests/integration
    assert {family.adapter for family in FAMILIES} | elsewhere == set(built_in("adapter"))
    assert len({id(family) for family in FAMILIES}) == len({family.model for family in FAMILIES})
