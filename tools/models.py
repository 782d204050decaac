"""docs/models.md: the model classes that UVR knows, the pipelines around them, and how far that is shown.

    PYTHONPATH=tests python tools/models.py

What is declared comes from the built-in adapters, what is shown from tests/families, tests/published.py and the zoo.
The conformance kit runs on each; `tests/docs/test_models.py` holds everything else against the page, and
`tests/adapters/test_families.py` the kit's result.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conformance import built_in, get
from families import FAMILIES
from published import PUBLISHED
from tiny import example

from uvr_core import plugins
from uvr_core.adapter import Adapter
from uvr_core.testing import Conformance, Status, check_adapter
from uvr_zoo.architectures import ARCHITECTURES
from uvr_zoo.recipes import RECIPES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
HEAD = """\
# Models

Written by `tools/models.py`; `tests/docs/test_models.py` says when it is out of date. A pipeline of another class on
one of these transformers is regulated in every row and forward that has no name. To add a class:
[port a model](port-a-model.md).

- **class, adapter**: `attach(pipe)` without a name recognises each. **lines**: of the adapter's file, at most 45.
- **pipelines**: each drew two prompts of unequal length from tiny random weights in its own `__call__`, with guidance
  and without, with references where it takes them; in every forward exactly the edited patches moved, in the
  conditional rows alone, and detached it drew bitwise what it drew before. In italics: listed by its source, not run.
- **beside**: text that reaches the picture beside the joint attention. It is not regulated, and each report names it.
- **kit**: checks of `uvr_core.testing.check_adapter` passed, of those that apply.
- **1024 x 1024**: published configurations, run on the meta device without weights: taps, grid and tokens add up.
- **trained**: pipelines of the zoo, in which erasing is measured. The others are shown on random weights alone.
- **diffusers**: the first release with the class, of those that UVR supports.

Modular pipelines are attached to as any, and their guider says which forward follows the prompt
(`tests/integration/test_modular.py`: ERNIE-Image, FLUX.1, FLUX.2 and klein, FLUX.3, Ideogram 4, Krea 2, Qwen-Image and
2.1, Z-Image). What does not fit is refused by the class in it, as below.

"""
UNFIT = """
## Refused, and why

"""
COLUMNS = (
    *("class, adapter", "models", "lines", "pipelines", "guidance"),
    *("beside", "kit", "1024 x 1024", "trained", "diffusers"),
)
GUIDANCE = {"two_pass": "two passes", "single": "distilled or a model of its own"}


def zoo(model: str) -> list[str]:
    """Trained zoo pipelines of a transformer class."""
    return [name for name in RECIPES if ARCHITECTURES[name].transformer == model]


def pipelines(adapter: Adapter) -> str:
    """The listed pipelines; in italics those that no test runs."""
    run = {drawing.pipeline for family in FAMILIES if family.adapter == adapter.name for drawing in family.drawings}
    run |= {ARCHITECTURES[name].pipeline for name in zoo(adapter.model)}
    names = [
        name.removesuffix("Pipeline") if name in run else f"*{name.removesuffix('Pipeline')}*"
        for name in adapter.pipelines
    ]
    return ", ".join(names) or "modular alone"


def source(adapter: Adapter) -> str:
    """The text of the adapter's file."""
    target, _ = plugins.registry().names("adapter")[adapter.name]
    module = importlib.util.find_spec(str(target).partition(":")[0])
    assert module is not None
    assert module.origin is not None
    return Path(module.origin).read_text()


def models(adapter: Adapter) -> str:
    """The models that the adapter's file names in its first line."""
    return source(adapter).removeprefix('"""').partition(": all that UVR knows")[0].replace("\n", " ")


def guidance(adapter: Adapter) -> str:
    kind, _, letters = adapter.guidance.partition(":")
    parts = {"c": "conditional", "u": "unconditional", "i": "references alone"}
    return GUIDANCE.get(kind) or "one batch: " + ", ".join(parts[letter] for letter in letters)


def sizes(adapter: Adapter) -> str:
    sources = [release.source for family in FAMILIES if family.adapter == adapter.name for release in family.releases]
    sources += [published.source for published in PUBLISHED if published.adapter == adapter.name]
    return ", ".join(re.sub(r"^[\w.-]+/", "", source) for source in sources)


def kit(report: Conformance) -> str:
    """Passed checks of those that apply."""
    applied = [outcome for outcome in report.outcomes if outcome.status is not Status.SKIPPED]
    return f"{sum(outcome.status is Status.PASSED for outcome in applied)} of {len(applied)}"


def kits() -> dict[str, str]:
    """{adapter: the kit's result on a tiny model of its class}."""
    adapters = {name: get("adapter", name) for name in built_in("adapter")}
    examples: dict[str, Any] = {family.adapter: family.example for family in FAMILIES}
    for name, adapter in adapters.items():
        if name not in examples:
            examples[name] = functools.partial(example, zoo(adapter.model)[0])
    return {name: kit(check_adapter(adapters[name], make)) for name, make in examples.items()}


def shown() -> dict[str, str]:
    """{adapter: the kit's result} of the page as it is."""
    return dict(re.findall(r"^\| `\w+` ([\w.-]+) \|(?:[^|]*\|){5} (\d+ of \d+) \|", PAGE.read_text(), re.MULTILINE))


def row(adapter: Adapter, result: str) -> tuple[str, ...]:
    since = next((family.since for family in FAMILIES if family.adapter == adapter.name), "0.38")
    beside = ", ".join(route.name for route in adapter.routes)
    return (
        f"`{adapter.model}` {adapter.name}",
        models(adapter),
        str(source(adapter).count("\n")),
        pipelines(adapter),
        guidance(adapter),
        beside,
        result,
        sizes(adapter),
        ", ".join(zoo(adapter.model)),
        since,
    )


def page(results: Mapping[str, str]) -> str:
    """The page's text."""
    adapters: list[Any] = sorted((get("adapter", name) for name in built_in("adapter")), key=lambda a: a.model.lower())
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(row(adapter, results.get(adapter.name, "?")) for adapter in adapters)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    return HEAD + table + UNFIT + "".join(f"- {', '.join(classes)}: {reason}.\n" for reason, classes in unfit().items())


def unfit() -> dict[str, list[str]]:
    """{reason: classes that are refused for it}, by name."""
    reasons: dict[str, list[str]] = {}
    for model, (reason, _) in sorted(plugins.registry().names("unfit").items()):
        reasons.setdefault(str(reason), []).append(f"`{model}`")
    return reasons


if __name__ == "__main__":
    PAGE.write_text(page(kits()))
