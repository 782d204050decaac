"""The zoo: small pipelines in diffusers' real classes, trained by this project, so that every claim is measured.

from uvr_zoo import load
pipe = load("flux")                           # diffusers.FluxPipeline
image = pipe("a cat on the left and a knife on the right , night background , flat style").images[0]
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from .vocabulary import CONCEPTS, OBJECTS, STYLES

if TYPE_CHECKING:
    from uvr_core import ConceptBank

    from . import scenes
    from .judging import Judge
    from .loading import load
    from .pipelines import card, names

__all__ = ["CONCEPTS", "OBJECTS", "STYLES", "card", "concepts", "judge", "load", "names", "scenes"]

_HOMES = {"load": "loading", "names": "pipelines", "card": "pipelines"}


@functools.cache
def judge(which: str = "first") -> Judge:
    """A judge of the zoo: list of PIL images -> list of {object name: score} of the objects it sees.

    Args:
        which: "first", whose maps made the banks, the calibrations and the masks; "second", of another architecture,
            trained on free-form scenes, that counts and that nothing else ever used.

    Raises:
        ValueError: neither.
    """
    from .pipelines import DATA

    if which not in ("first", "second"):
        raise ValueError(f"unknown judge {which!r}; there are: first, second")
    if which == "second":
        from .freeform import second_judge

        return second_judge.load(DATA / "freeform" / "judge")
    from .judging import Judge

    return Judge.load(DATA / "judge")


def concepts(pipeline: str, concept: str) -> ConceptBank:
    """The shipped ConceptBank of a zoo pipeline and concept, made by collect and calibrate.

    Raises:
        ValueError: there is none; the message lists what there is.
    """
    from uvr_core import load_concepts

    from .pipelines import DATA

    folder = DATA / "concepts"
    path = folder / f"{pipeline}-{concept}.safetensors"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none"
        raise ValueError(f"no shipped concept {concept!r} for pipeline {pipeline!r}; there are: {shipped}")
    return load_concepts(path)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name == "scenes":
        return importlib.import_module(f"{__name__}.scenes")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
