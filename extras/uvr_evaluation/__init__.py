"""Evaluation: the same prompts under several policies, baselines and controls, judged, with intervals.

    from uvr_evaluation import evaluate
    summary = evaluate(pipe, "prompts.csv", "out", concepts="weapon.safetensors", judges=["nudenet"])

Importing this package is cheap; torch loads with the first name that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arms import Arm
    from .comparison import evaluate
    from .prompt_sets import Task
    from .publish import push

_HOMES = {"Arm": "arms", "Task": "prompt_sets", "evaluate": "comparison", "push": "publish"}
__all__ = ["Arm", "Task", "evaluate", "push"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
