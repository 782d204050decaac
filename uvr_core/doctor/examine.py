"""What an adapter must say of a model class that none knows, found out on a small version of it.

Nothing is believed that can be tried: joint attention is what sees more keys when the text or the picture grows; an
output row is the one that moves an output patch; the scale of time is what reaches the sines of its embedding. How
pipelines guide is read off their source text, and so are their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import attrs
import torch
from torch import nn

from ..errors import UnsupportedRuntime, UVRError
from ..intercept.calls import AttentionCall
from ..testing.adapter.record import moved_patches, patches_of_rows, record
from ..testing.example import Example, Size
from ..testing.inputs import TEXT, Kind, TinyInputs, time_scale
from ..testing.source import Pipelines, pipelines_of
from ..testing.tiny import example_of


@attrs.frozen
class Findings:
    """What was found out of a model class.

    Attributes:
        model: class name.
        attention: patterns of the joint attention, in order of execution.
        image_at, output_first, text_output, guidance, pipelines: as Adapter has them.
        kind: how the picture's size reaches the model; patch: side of a patch, for pictures.
        time: name of the time argument; scale, clean: as TinyInputs has them.
        references: whether the model ran with reference images.
        routes: arguments by which text was seen to reach the picture beside the joint attention.
        unsure: {field: what to look at by hand}.
    """

    model: str
    attention: tuple[str, ...]
    image_at: Literal["start", "end"]
    output_first: bool
    text_output: bool
    guidance: str
    pipelines: tuple[str, ...]
    kind: Kind
    time: str
    scale: float
    clean: bool
    references: bool
    routes: tuple[str, ...] = ()
    unsure: dict[str, str] = attrs.field(factory=dict)


def examine(inputs: TinyInputs) -> Findings:
    """Find out what an adapter must say of a small model.

    Raises:
        UVRError: no module was found in which text and picture attend to each other.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return _examine(inputs)


def _examine(inputs: TinyInputs) -> Findings:
    unsure: dict[str, str] = {}
    example = example_of(inputs)
    joint, side = _joint_modules(inputs)
    name = type(inputs.model).__name__
    if not joint:
        raise UVRError(
            f"{name}: no module was found in which text and picture attend to each other in one call (attention over "
            f"the picture or the text alone: {', '.join(side[:3]) or 'none'}); UVR regulates joint attention"
        )
    text_output = joint[-1].text_in_queries
    if len({call.text_in_queries for call in joint}) > 1:
        unsure["text_output"] = "some blocks have text among their queries, others have not"
    image_at, output_first = _roles(example, joint[-1], unsure)
    pipelines = pipelines_of(name)
    unsure |= _doubts(inputs, pipelines)
    return Findings(
        model=name,
        attention=_patterns(inputs.model, [call.path for call in joint], unsure),
        image_at=image_at,
        output_first=output_first,
        text_output=text_output,
        guidance=pipelines.guidance or "two_pass",
        pipelines=pipelines.names,
        kind=inputs.kind,
        time=inputs.time,
        scale=inputs.scale,
        clean=inputs.clean,
        references=example.references,
        unsure=unsure,
    )


def _doubts(inputs: TinyInputs, pipelines: Pipelines) -> dict[str, str]:
    """What neither the model nor its pipelines' source tells for certain."""
    unsure: dict[str, str] = {}
    if not pipelines.names:
        unsure["guidance"] = "no pipeline of diffusers drives this class: say how guidance branches reach the model"
    elif pipelines.guidance == "single":
        unsure["guidance"] = f"no second pass was seen in {pipelines.names[0]}: is guidance distilled?"
    elif pipelines.others:
        unsure["guidance"] = f"some of its pipelines do otherwise ({', '.join(pipelines.others)})"
    if inputs.clean:
        unsure["time"] = f"{pipelines.names[0]} seems to turn time round (1 = clean): is it 0..1?"
    elif time_scale(inputs) == 0:
        unsure["time"] = "no sine of a time embedding was seen: 0..1 is a guess"
    if inputs.kind == "picture" and "patch_size" not in inputs.config:
        unsure["layout"] = "the class has no patch_size: 1 is a guess"
    return unsure


@attrs.frozen
class _JointModule:
    path: str
    text_in_queries: bool


def _joint_modules(inputs: TinyInputs) -> tuple[list[_JointModule], list[str]]:
    """Modules whose keys grow with the text and with the picture, in order of execution; and the other attentions."""
    tapped = {}
    for path, module in inputs.model.named_modules():
        if getattr(module, "processor", None) is not None:
            try:
                record(Example(inputs.model, inputs), {path: module}, inputs(2, 3), (2, 3))
            except UnsupportedRuntime:
                continue
            tapped[path] = module
    counts = []
    for text, size in ((TEXT, (2, 3)), (TEXT + 2, (2, 3)), (TEXT, (3, 5))):
        changed = attrs.evolve(inputs, text=text)
        first: dict[str, AttentionCall] = {}
        for call in record(Example(inputs.model, changed), tapped, changed(*size), size):
            first.setdefault(call.path, call)
        counts.append({path: (call.query.shape[2], call.key.shape[2]) for path, call in first.items()})
    base, more_text, more_picture = counts
    joint, side = [], []
    for path, (queries, keys) in base.items():
        if more_text[path][1] > keys and more_picture[path][1] > keys:
            joint.append(_JointModule(path, more_text[path][0] > queries))
        else:
            side.append(path)
    return joint, side


def _patterns(model: nn.Module, paths: list[str], unsure: dict[str, str]) -> tuple[str, ...]:
    """Patterns that match these paths and no other module, in their order; else the paths themselves."""
    patterns = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path) for path in paths))
    matched = []
    for pattern in patterns:
        regex = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
        matched += [path for path, _ in model.named_modules() if regex.fullmatch(path)]
    if matched == paths:
        return tuple(patterns)
    unsure["attention"] = "blocks of several kinds alternate: these are the small version's paths, name the real ones"
    return tuple(paths)


def _roles(example: Example, module: _JointModule, unsure: dict[str, str]) -> tuple[Literal["start", "end"], bool]:
    """(image_at, output_first) of the last joint block, by moving rows of its output."""
    size = example.sizes[0]
    tap = {module.path: dict(example.model.named_modules())[module.path]}
    call = record(example, tap, example.arguments(size), size)[0]
    queries, count = call.query.shape[2], size[0] * size[1]
    start = _first_row(example, tap, size, queries, (), unsure)
    if queries == count:  # the queries are the picture alone: look at the keys
        image_at: Literal["start", "end"] = "end" if _text_first(example, tap, size) else "start"
    else:
        image_at = "start" if start == 0 else "end"
        if start not in (0, queries - count):
            unsure["image_at"] = f"the output begins at row {start} of {queries}, at neither end"
    if not example.references:
        return image_at, True
    references = example.reference_sizes
    more = record(example, tap, example.arguments(size, references=references), size)[0].query.shape[2]
    with_references = _first_row(example, tap, size, more, references, unsure)
    begin = 0 if image_at == "start" else queries - count
    return image_at, with_references == begin


def _first_row(
    example: Example,
    tap: Mapping[str, nn.Module],
    size: Size,
    rows: int,
    references: tuple[Size, ...],
    unsure: dict[str, str],
) -> int:
    """The row that moves output patch 0; a doubt if the patches do not follow one row each."""
    (module,) = tap.values()
    moved = moved_patches(example, module, example.arguments(size, rows, references=references), size, rows)
    hits = patches_of_rows(moved)
    count = size[0] * size[1]
    start = next((row for row, patches in enumerate(hits) if patches == [0]), int(moved[:, 0].argmax()))
    if hits[start : start + count] != [[patch] for patch in range(count)]:
        unsure["image_at"] = "rows of the last joint block do not move one output patch each, in order"
    return start


def _text_first(example: Example, tap: Mapping[str, nn.Module], size: Size) -> bool:
    """Whether the keys begin with text: what changes there when the text does."""
    arguments = example.arguments(size)
    other = {**arguments, "encoder_hidden_states": torch.randn_like(arguments["encoder_hidden_states"])}
    one, two = (record(example, tap, each, size)[0].key for each in (arguments, other))
    changed = (one - two).abs().amax((0, 1, 3))
    half = len(changed) // 2
    return bool(changed[:half].sum() > changed[half:].sum())
