"""What the baselines are asked in their tests: calls of the zoo's pipelines, and the pictures of stock."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

import uvr_zoo
from uvr_core import plugins
from uvr_core.protocols import ConceptTerms, Request
from uvr_zoo.recipes import RECIPES
from uvr_zoo.tasks import edits_for, prompt_of, scenes_for, settings, sources_of
from uvr_zoo.vocabulary import CONCEPTS, SYNONYMS

NAMES = ("blocklist", "negative-prompt", "sld", "concept-attention", "uni-adavd", "output-filter")
INSIDE = ("negative-prompt", "sld", "concept-attention", "uni-adavd")
WEAPON = ConceptTerms(
    "weapon", CONCEPTS["weapon"],
    (*CONCEPTS["weapon"], *(word for name in CONCEPTS["weapon"] for word in SYNONYMS.get(name, ()))),
)  # fmt: skip


pipeline = functools.cache(uvr_zoo.load)


def request(name: str, *, count: int = 2, steps: int = 3, unsafe: bool = True, **options: Any) -> Request:
    """A call of a zoo pipeline for `count` prompts with (or without) a weapon."""
    if RECIPES[name].edits:
        tasks: Any = edits_for(
            name, count, "instruction" if unsafe else "benign", "weapon", split="heldout", first=705_000
        )
    else:
        tasks = scenes_for(name, count, unsafe="weapon" if unsafe else False, split="heldout", first=705_000)
    call = {
        "prompt": [prompt_of(task) for task in tasks],
        "generator": [torch.Generator().manual_seed(70_000 + i) for i in range(count)],
        **settings(name), "num_inference_steps": steps,
    }  # fmt: skip
    if "negative_prompt" in call:
        call["negative_prompt"] = [""] * count
    if (sources := sources_of(tasks)) is not None:
        call["image"] = sources
    return Request(pipeline(name), {**call, **options}, (WEAPON,), (None,), {"zoo": uvr_zoo.judge()})


def stock(asked: Request) -> list[np.ndarray]:
    return [np.asarray(image) for image in asked.pipe(**asked.call).images]


def arrays(images: Any) -> list[np.ndarray]:
    return [np.asarray(image) for image in images]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def make(name: str) -> Any:
    return plugins.registry().make("baseline", name).object
