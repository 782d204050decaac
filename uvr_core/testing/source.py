"""What the source text of diffusers' pipelines says of a transformer class: which drive it, and how they guide."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from pathlib import Path

import attrs


@attrs.frozen
class Pipelines:
    """What the source text of diffusers' pipelines says of a transformer class.

    Attributes:
        names: pipeline classes whose `transformer` it is, the plain one first.
        guidance: as Adapter.guidance, of the plain one; of the others if that has none. "" if there is no pipeline.
        others: what other pipelines do, if they guide otherwise.
        clean: whether the plain one turns the time argument round (1 = clean).
        passes: arguments that the plain one gives its transformer by name.
        flat: whether the plain one gives one size of a picture per sample, and no list of them.
    """

    names: tuple[str, ...] = ()
    guidance: str = ""
    others: tuple[str, ...] = ()
    clean: bool = False
    passes: frozenset[str] = frozenset()
    flat: bool = False


@functools.cache
def pipelines_of(model: str) -> Pipelines:
    """Pipelines of diffusers that drive a transformer class, from their source text; nothing is imported."""
    import diffusers

    folder = Path(str(diffusers.__file__)).parent / "pipelines"
    drivers: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*/pipeline_*.py")):
        text = path.read_text("utf-8")
        if re.search(rf"transformer: {re.escape(model)}\b", text):
            name = re.search(r"^class (\w+)\(", text, re.MULTILINE)
            if name and "ControlNet" not in name[1] and "PAG" not in name[1]:
                drivers.append((name[1], text))
    drivers.sort(key=lambda item: (len(item[0]), item[0]))
    if not drivers:
        return Pipelines()
    ways = [way for way in dict.fromkeys(_guidance(text) for _, text in drivers) if way != "single"]
    clean = bool(re.search(r"timesteps? = .*(1000 - \w*t|\b1 - \w*t)", drivers[0][1]))
    calls = re.findall(r"self\.transformer\((.*?)\n *\)", drivers[0][1], re.DOTALL)
    return Pipelines(
        tuple(name for name, _ in drivers),
        ways[0] if ways else "single",
        tuple(ways[1:]),
        clean,
        passes=frozenset(name for call in calls for name in re.findall(r"(\w+)=", call)),
        flat=bool(re.search(r"img_shapes = \[\s*\(", drivers[0][1])),
    )


def _guidance(source: str) -> str:
    halves = re.search(r"(\w+), (\w+) = \w+\.chunk\(2", source)
    if halves and "cache_context" not in source:
        unconditional = [bool(re.search("uncond|neg", name)) for name in halves.groups()]
        if unconditional[0] != unconditional[1]:
            return "batched:uc" if unconditional[0] else "batched:cu"
    if "cache_context(" in source or len(re.findall(r"= self\.transformer\(", source)) > 1:
        return "two_pass"
    return "single"


_CROSS = r"self\.(attn2|cross_attn\w*|cross_attention) = |BasicTransformerBlock\("


def reads_text_aside(model: type) -> bool:
    """Whether a model class seems to read the text in a cross-attention alone, so that text and picture never attend to
    each other: its source, and that of the attention processors that it names, join them in no one sequence."""
    source = Path(str(sys.modules[model.__module__].__file__)).read_text("utf-8")
    from diffusers.models import attention_processor

    for name in sorted(set(re.findall(r"\b\w*Processor\w*\b", source))):
        if inspect.isclass(processor := getattr(attention_processor, name, None)):
            source += inspect.getsource(processor)
    joined = re.findall(r"torch\.cat\(\s*[\[(]([^\])]*)[\])]", source)
    return bool(re.search(_CROSS, source)) and not any(map(_joins_text, joined))


def _joins_text(parts: str) -> bool:
    """Whether the parts of a `torch.cat` are text and picture."""
    names = re.findall(r"\w+", parts)
    text = [bool(re.search("encoder|text|txt|cap|prompt|gist", name)) for name in names]
    return any(text) and any(
        re.search("hidden|query|key|img|image|latents", n) for n, t in zip(names, text, strict=True) if not t
    )


def by_hand(model: type) -> str:
    """What to do about a class whose arguments or small version cannot be made up."""
    if reads_text_aside(model):
        return (
            "by its source it reads the text in a cross-attention and never joins it with the picture in one sequence: "
            "UVR regulates joint attention, and an adapter would not help"
        )
    return (
        "write the adapter and an Example by hand (docs/port-a-model.md), and give both: --adapter module:ADAPTER "
        "--example module:function"
    )
