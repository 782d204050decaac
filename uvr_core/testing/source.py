"""What the source text of diffusers' pipelines says of a transformer class: which drive it, and how they guide."""

from __future__ import annotations

import functools
import re
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
    """

    names: tuple[str, ...] = ()
    guidance: str = ""
    others: tuple[str, ...] = ()
    clean: bool = False


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
    return Pipelines(tuple(name for name, _ in drivers), ways[0] if ways else "single", tuple(ways[1:]), clean)


def _guidance(source: str) -> str:
    halves = re.search(r"(\w+), (\w+) = \w+\.chunk\(2", source)
    if halves and "cache_context" not in source:
        unconditional = [bool(re.search("uncond|neg", name)) for name in halves.groups()]
        if unconditional[0] != unconditional[1]:
            return "batched:uc" if unconditional[0] else "batched:cu"
    if "cache_context(" in source or len(re.findall(r"= self\.transformer\(", source)) > 1:
        return "two_pass"
    return "single"
