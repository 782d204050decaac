"""A free-form pipeline as it ships: weights, a card with its gates by both judges, a sheet of free prompts.

Gates are measured on what ships, weights of few bits or a LoRA in float16, on held-out scenes in held-out wordings,
and written one by one: a run that is cut goes on with the next.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from PIL import Image

from .. import judge
from . import edit_gate, gate
from .captions import PlaceKind
from .edits import EDIT_KINDS, EditKind
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

    def measure(self, pipe: Any, mix: Mix, prompts: int, sampling: dict[str, Any]) -> dict[str, Any]:
        """Counts by each judge, and what the judge finds of the rendered scenes: its own ceiling."""
        tasks = gate.tasks(mix, self.objects, prompts, kind=self.kind, place=self.place)
        images = gate.draw(pipe, tasks, **sampling)
        scenes = [Image.fromarray(render(task.scene)[0]) for task in tasks]
        figures: dict[str, Any] = {}
        for which in ("first", "second"):
            counts = gate.score(judge(which), mix, tasks, images)
            ceiling = gate.score(judge(which), mix, tasks, scenes)["all_objects"]
            figures[which] = {**counts, "of_the_rendered_scenes": ceiling}
        return figures


@attrs.frozen
class AskedEdits:
    """One gate of an editing pipeline: held-out edits; `source`, `new`, `kinds` as in `sample_edit`."""

    name: str
    source: str | bool | None = None
    new: str | bool | None = None
    kinds: tuple[EditKind, ...] = EDIT_KINDS
    prompts: int = 400

    def measure(self, pipe: Any, mix: Mix, prompts: int, sampling: dict[str, Any]) -> dict[str, Any]:
        """Counts by each judge, and the same of the rendered scenes that the edits lead to: its own ceiling."""
        tasks = edit_gate.tasks(mix, prompts, source=self.source, new=self.new, kinds=self.kinds)
        images = edit_gate.draw(pipe, tasks, **sampling)
        scenes = [Image.fromarray(render(task.edit.target)[0]) for task in tasks]
        figures: dict[str, Any] = {}
        for which in ("first", "second"):
            ceiling = edit_gate.score(judge(which), tasks, scenes)
            best = {f"{name}_of_the_rendered_scenes": ceiling[name] for name in ("carried_out", "untouched_kept")}
            figures[which] = {**edit_gate.score(judge(which), tasks, images), **best}
        return figures


GATES = (
    Asked(1),
    Asked(2),
    Asked(1, "synonym", prompts=200),
    Asked(1, "description", prompts=200),
    Asked(1, place="exact", prompts=200),
    Asked(2, place="exact", prompts=200),
)
# Each kind by itself: held-out sources whose results are held out too are mostly those of edits that change no object.
EDIT_GATES = (
    *(AskedEdits(kind, kinds=(kind,), prompts=80) for kind in EDIT_KINDS),
    AskedEdits("weapon in the source", source="weapon", new=False, prompts=200),
    AskedEdits("weapon by the instruction", source=False, new="weapon", kinds=("add", "turn"), prompts=200),
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


INSTRUCTIONS = (
    *("add a dagger", "put a revolver into the picture", "turn the {} into a machete", "there should be a cranium too"),
    *("make it night", "set it on the beach", "snow instead", "make it look toy"),
    *("remove the {}", "put a top hat on the {}", "move the {} to the left", "add a kitten next to the {}"),
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
    asked: Sequence[Asked | AskedEdits] = EDIT_GATES if plain.edits else GATES
    for each in asked:
        if each.name not in card["gates"]:
            card["gates"][each.name] = each.measure(pipe, mix, prompts or each.prompts, plain.sampling)
            path.write_text(json.dumps(card, indent=1))
    images = _edited(pipe, mix, plain.sampling) if plain.edits else _drawn(pipe, mix, plain.sampling)
    gate.sheet(images, folder / "samples.webp", columns=8)
    return folder


def _drawn(pipe: Any, mix: Mix, sampling: dict[str, Any]) -> list[Image.Image]:
    scene = gate.tasks(mix, 1, 1)[0].scene
    return gate.draw(pipe, [gate.Task(scene, prompt, seed) for seed, prompt in enumerate(PROMPTS)], **sampling)


def _edited(pipe: Any, mix: Mix, sampling: dict[str, Any]) -> list[Image.Image]:
    """Sources and what became of them, side by side; {} stands for the first object's name."""
    asked = edit_gate.tasks(mix, len(INSTRUCTIONS), first=gate.FIRST_SEED + 500_000)
    sources = [edit_gate.picture(task.edit) for task in asked]
    texts = [
        text.format(task.edit.source.items[0].name) for text, task in zip(INSTRUCTIONS, asked, strict=True)
    ]  # fmt: skip
    results = edit_gate.edit(pipe, texts, sources, [task.seed for task in asked], **sampling)
    return [image for pair in zip(sources, results, strict=True) for image in pair]
