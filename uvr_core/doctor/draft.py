"""A draft of an adapter module, from what was found out of a model class; what is not certain carries a TODO."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..adapter import Adapter
from ..errors import UVRError
from ..testing.inputs import Kind, TinyInputs, rotary_axes
from .examine import Findings

_LAYOUTS: Mapping[Kind, str] = {
    "ids": """\
def layout(arguments: Arguments) -> Layout:
    ids = arguments["img_ids"]  # (I, {axes}): image, row, column; the output has the lowest number
    ids = ids[0] if ids.ndim == 3 else ids
    images = [ids[ids[:, 0] == number] for number in ids[:, 0].unique()]
    grids = [tuple(int(n) for n in (part[:, 1:3].amax(0) - part[:, 1:3].amin(0) + 1).tolist()) for part in images]
    return Layout(grids[0], tuple(grids[1:]))""",
    "shapes": """\
def layout(arguments: Arguments) -> Layout:
    shapes = arguments["img_shapes"][0]  # (frames, rows, columns), or a list of them, the output first
    (_, height, width), *references = shapes if isinstance(shapes[0], (list, tuple)) else [shapes]
    return Layout((height, width), tuple((rows, columns) for _, rows, columns in references))""",
    "positions": """\
def layout(arguments: Arguments) -> Layout:
    image = arguments["hidden_states"].shape[1]
    ids = arguments["position_ids"].reshape(-1, arguments["position_ids"].shape[-1])[-image:]  # text, then the picture
    height, width = (int(n) for n in (ids[:, 1:3].amax(0) - ids[:, 1:3].amin(0) + 1).tolist())
    return Layout((height, width))""",
    "picture": """\
def layout(arguments: Arguments) -> Layout:
    patch = {patch}
    height, width = (side // patch for side in arguments["hidden_states"].shape[-2:])
    return Layout((height, width))""",
}


def adapter_name(model: str) -> str:
    """A name for the adapter of a class: "QwenImageTransformer2DModel" -> "qwen-image"."""
    stem = re.sub(r"Transformer[23]DModel$|Model$", "", model)
    return re.sub(r"(?<=.)(?=Image|Edit)", "-", stem).lower()


def draft(findings: Findings, inputs: TinyInputs) -> str:
    """Python source of an adapter module; what is not certain carries a TODO."""
    name = adapter_name(findings.model)
    constant = re.sub(r"\W", "_", name).upper()

    def todo(field: str) -> str:
        return f"  # TODO {findings.unsure[field]}" if field in findings.unsure else ""

    patch = 'arguments["self"].config.patch_size'
    value = inputs.config.get("patch_size")
    if isinstance(value, (list, tuple)):
        patch += "[-1]"
    elif value is None:
        patch = "1"
    layout = _LAYOUTS[findings.kind].format(patch=patch, axes=rotary_axes(inputs.config))
    layout = layout.replace(" -> Layout:", f" -> Layout:{todo('layout')}", 1)
    scale = "" if findings.scale == 1 else f" / {findings.scale:g}"
    turned = "1 - " if findings.clean else ""
    fields = [
        f"name={json.dumps(name)},",
        f"model={json.dumps(findings.model)},",
        f"attention={_tuple(findings.attention)},{todo('attention')}",
        "layout=layout,",
        "time=sigma,",
        f"image_at={json.dumps(findings.image_at)},{todo('image_at')}",
        *([] if findings.output_first else ["output_first=False,"]),
        *([] if findings.text_output else ["text_output=False,"]),
        *([f"# TODO text_output: {findings.unsure['text_output']}"] if "text_output" in findings.unsure else []),
        f"guidance={json.dumps(findings.guidance)},{todo('guidance')}",
        *_routes(findings),
        *([f"pipelines={_tuple(findings.pipelines)},"] if findings.pipelines else []),
    ]
    body = "\n".join(f"    {field}" for field in fields)
    return f'''\
"""{findings.model}, drafted by `uvr doctor` from a small random version. Check it before use."""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout{", TextRoute" if findings.routes else ""}


{layout}


def sigma(arguments: Arguments) -> torch.Tensor:
    return {turned}arguments["{findings.time}"]{scale}{todo("time")}


{constant} = Adapter(
{body}
)
'''


def _routes(findings: Findings) -> list[str]:
    """The field `routes`, or a doubt about it."""
    seen = "seen to move the picture beside the joint attention"
    routes = [f"TextRoute({json.dumps(name)}, {json.dumps(seen)}, ({json.dumps(name)},))," for name in findings.routes]
    fields = ["routes=(", *(f"    {route}" for route in routes), "),"] if routes else []
    return fields + ([f"# TODO routes: {findings.unsure['routes']}"] if "routes" in findings.unsure else [])


def load_draft(source: str) -> Adapter:
    """The Adapter in a draft's source.

    Raises:
        UVRError: the source holds none.
    """
    names: dict[str, Any] = {}
    exec(compile(source, "<draft>", "exec"), names)
    for value in names.values():
        if isinstance(value, Adapter):
            return value
    raise UVRError("the draft's source holds no Adapter")


def _tuple(parts: Sequence[str]) -> str:
    """A tuple's source, over several lines where one would be long."""
    inner = ", ".join(map(json.dumps, parts))
    if len(inner) > 90:
        return "(\n" + "".join(f"        {json.dumps(part)},\n" for part in parts) + "    )"
    return f"({inner},)" if len(parts) == 1 else f"({inner})"
