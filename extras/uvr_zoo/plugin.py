"""The zoo's way into UVR: the "uvr" entry-point group, like anyone's. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pluggy

hookimpl = pluggy.HookimplMarker("uvr")


@hookimpl
def uvr_judges() -> Mapping[str, object]:
    return {
        "zoo": "uvr_zoo:judge",
        "zoo-second": "uvr_zoo.plugin:second_judge",
        "zoo-background": "uvr_zoo.judging:BackgroundJudge",
    }


def second_judge() -> object:
    """The zoo's second judge."""
    from . import judge

    return judge("second")


@hookimpl
def uvr_concepts() -> Mapping[str, object]:
    folder = Path(__file__).parent / "data" / "concepts"
    return {path.stem: str(path) for path in sorted(folder.glob("*.safetensors"))}


@hookimpl
def uvr_recipes() -> Mapping[str, object]:
    folder = Path(__file__).parent / "data" / "concept_recipes"
    return {f"zoo:{path.stem}": str(path) for path in sorted(folder.glob("*.toml"))}


@hookimpl
def uvr_models() -> Mapping[str, object]:
    return {"zoo": "uvr_zoo:load"}


@hookimpl
def uvr_commands() -> Mapping[str, tuple[object, str]]:
    return {
        "demo": (
            "uvr_zoo.demo_command:demo",
            "Unsafe prompts with and without regulation, measured.",
        ),
        "zoo": ("uvr_zoo.commands:zoo", "The small pipelines that this project trained."),
    }
