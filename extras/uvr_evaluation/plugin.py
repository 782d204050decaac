"""How evaluation comes into UVR: the "uvr" entry-point group, like anyone's. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

hookimpl = pluggy.HookimplMarker("uvr")


@hookimpl
def uvr_commands() -> Mapping[str, tuple[object, str]]:
    return {
        "concept": ("uvr_evaluation.concept_command:concept", "Make a concept from words; list those installed."),
        "push": ("uvr_evaluation.publish_command:push", "Put a concept file with its card on the Hub."),
        "judge": ("uvr_evaluation.judging_command:judge", "Hold judges against published pictures, drawing none."),
        "prompt-sets": (
            "uvr_evaluation.published_command:prompt_sets",
            "List the published prompt sets that have a name.",
        ),
        "eval": ("uvr_evaluation.command:evaluate", "Compare policies and baselines on a prompt set."),
    }


@hookimpl
def uvr_pages() -> Mapping[str, object]:
    return {"uvr.evaluation/1": "uvr_evaluation.pages:show", "uvr.suite/1": "uvr_evaluation.suite_page:show"}
