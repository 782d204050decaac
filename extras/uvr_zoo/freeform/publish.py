"""A free-form pipeline as it ships: weights, a card with its gates by both judges, a sheet of free prompts.

Gates are measured on what ships, weights rounded to int8 or a LoRA to float16, on held-out scenes in held-out wordings,
and written one by one: a run that is cut goes on with the next.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import attrs
from PIL import Image

from .. import judge
from . import gate
from .captions import PlaceKind
from .pipelines import load_free, part, recipe
from .pool import Mix
from .render import render
from .wordings import Kind


@attrs.frozen
class Asked:
    """One gate: held-out scenes of so many objects, in wordings of a kind, with or without their places."""

    objects: int
    kind: Kind = "name"
    place: PlaceKind = "none"
    prompts: int = 400

    @property
    def name(self) -> str:
        return f"{self.objects} by {self.kind}, place {self.place}"


GATES = (
    Asked(1),
    Asked(2),
    Asked(1, "synonym", prompts=200),
    Asked(1, "description", prompts=200),
    Asked(1, place="exact", prompts=200),
    Asked(2, place="exact", prompts=200),
)
# Two looked-at sheets' worth: what training said in other words or never, and what this world does not hold.
PROMPTS = (
    *("a dagger in the snow", "a revolver", "a machete on the beach", "dynamite at night", "a cranium"),
    *("a kitten", "a puppy by the sea", "an automobile in a meadow", "a trout", "a toadstool in the forest"),
    *("a sharp thing used to cut bread", "an animal that barks", "a fruit that falls from a tree", "a top hat"),
    *("a dog with a knife", "a cat and a pistol", "a bomb next to a banana", "a skull behind a tree"),
    *("a violin", "a peaceful landscape", "two people talking", ""),
    *("a very small knife in a corner", "a large fish"),
)


def publish(name: str, weights: Path, export: Path, training: dict[str, Any], prompts: int | None = None) -> Path:
    """Measure the weights in a folder, a transformer's or a student's LoRA, and write the pipeline under `export`/NAME.

    Args:
        training: how it was trained, for the card.
        prompts: of every gate, instead of its number.

    Returns:
        The pipeline's folder, with transformer/ or lora/, card.json and samples.webp.
    """
    folder = export / name
    stored = folder / part(name)
    if weights.resolve() != stored.resolve():
        shutil.rmtree(stored, ignore_errors=True)
        shutil.copytree(weights, stored)
    plain, path = recipe(name), folder / "card.json"
    pipe, mix = load_free(name, stored), Mix(plain.objects, plain.styles)
    card: dict[str, Any] = {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in pipe.transformer.parameters()),
        "sampling": plain.sampling,
        "training": training,
        "seeds": f"gates: {gate.FIRST_SEED} on",
        "gates": {},
    }
    if path.exists() and (before := json.loads(path.read_text()))["training"] == training:
        card["gates"] = before["gates"]
    for asked in GATES:
        if asked.name not in card["gates"]:
            card["gates"][asked.name] = measure(pipe, mix, asked, prompts or asked.prompts, plain.sampling)
            path.write_text(json.dumps(card, indent=1))
    tasks = [gate.Task(gate.tasks(mix, 1, 1)[0].scene, prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    images = gate.draw(pipe, tasks, **plain.sampling)
    gate.sheet(images, folder / "samples.webp", columns=8)
    return folder


def measure(pipe: Any, mix: Mix, asked: Asked, prompts: int, sampling: dict[str, Any]) -> dict[str, Any]:
    """A gate's counts by each judge, and what the judge finds of the rendered scenes: its own ceiling."""
    tasks = gate.tasks(mix, asked.objects, prompts, kind=asked.kind, place=asked.place)
    images = gate.draw(pipe, tasks, **sampling)
    scenes = [Image.fromarray(render(task.scene)[0]) for task in tasks]
    figures: dict[str, Any] = {}
    for which in ("first", "second"):
        counts = gate.score(judge(which), mix, tasks, images)
        ceiling = gate.score(judge(which), mix, tasks, scenes)["all_objects"]
        figures[which] = {**counts, "of_the_rendered_scenes": ceiling}
    return figures
