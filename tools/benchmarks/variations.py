"""Robustness against other words, drawing styles and sizes: one evaluation per pipeline, with a group for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from outcomes import (
    ASKED,
    FIRST_SEED,
    IMAGE_SEED,
    Plan,
    concept_of,
    figures,
    members_of,
    pipeline,
    shipped,
    unseen,
)

from uvr_core import ConceptTerms
from uvr_evaluation import Task as Entry
from uvr_evaluation import evaluate
from uvr_evaluation.rows import read_rows
from uvr_evaluation.statistics import rate
from uvr_zoo import judge, scenes
from uvr_zoo.prompt_sets import entry
from uvr_zoo.recipes import RECIPES
from uvr_zoo.tasks import Task, anchor_style, edits_for, scenes_for, settings, shown
from uvr_zoo.vocabulary import CONCEPTS, STYLES

WAYS = {name: ("instruction", "source") if recipe.edits else ("",) for name, recipe in RECIPES.items()}
WORDINGS = ("name", "synonym", "description")
SIZES = {"tiny": "tiny", "plain": "", "large": "large"}
Groups = Mapping[str, Sequence[Task]]


def asking(name: str, by: str, count: int, styles: tuple[str, ...], **options: Any) -> list[Task]:
    """Held-out tasks, half of them with each concept, all objects called by their names."""
    tasks: list[Task] = []
    for number, concept in enumerate(ASKED):
        part, first = (count + number) // len(ASKED), FIRST_SEED + 1000 * number
        if by:
            tasks += edits_for(name, part, by, concept, split="heldout", first=first, styles=styles, **options)
        else:
            tasks += scenes_for(
                name, part, unsafe=concept, split="heldout", first=first, styles=styles, wordings=0.0, **options
            )
    return tasks


def changed(scene: scenes.Scene, names: frozenset[str], **what: Any) -> scenes.Scene:
    items = tuple(attrs.evolve(item, **what) if item.name in names else item for item in scene.items)
    return attrs.evolve(scene, items=items)


def reworded(task: Task, wording: str) -> Task:
    """The same task, its unsafe object called by another wording in the caption or instruction."""
    names = members_of(task)
    if isinstance(task, scenes.Scene):
        return changed(task, names, wording=wording)
    phrases: list[tuple[str, scenes.Item | None]] = []
    for text, item in task.phrases:
        if item is None or item.name not in names:
            phrases.append((text, item))
        else:
            other = attrs.evolve(item, wording=wording)
            phrases.append((text.replace(item.noun_phrase, other.noun_phrase), other))
    return attrs.evolve(task, target=changed(task.target, names, wording=wording), phrases=tuple(phrases))


def resized(task: Task, size: str) -> Task:
    """The same task, its unsafe object of another size in the picture and in the caption."""
    names = members_of(task)
    if isinstance(task, scenes.Scene):
        return changed(task, names, size=size)
    return attrs.evolve(
        task, source=changed(task.source, names, size=size), target=changed(task.target, names, size=size)
    )


def wordings(count: int) -> Iterator[tuple[str, str, Groups]]:
    """Synthesis by caption and editing by instruction; the same tasks in all three wordings."""
    for name, ways in WAYS.items():
        tasks = asking(name, ways[0], count, unseen(name))
        yield name, ways[0], {wording: [reworded(task, wording) for task in tasks] for wording in WORDINGS}


def styles(count: int) -> Iterator[tuple[str, str, Groups]]:
    """Every style of the world: the anchors', one that they never saw, one that the model itself never saw."""
    for name, ways in WAYS.items():
        groups = {}
        for style in STYLES:
            known = "anchors'" if style == anchor_style(name) else "" if style in RECIPES[name].styles else "untrained"
            title = f"{style} ({known or 'unseen by the anchors'})"
            groups[title] = asking(name, ways[-1], count, (style,))
        yield name, ways[-1], groups


def sizes(count: int) -> Iterator[tuple[str, str, Groups]]:
    """The unsafe object's size, in the caption, or for editing in the source. Large ones stand alone, as in training.

    A large source object fits edits of the background alone, since every other edit puts something beside it.
    """
    for name, ways in WAYS.items():
        options: dict[str, Any] = {} if RECIPES[name].edits else {"sizes": False}
        tasks = asking(name, ways[-1], count, unseen(name), **options)
        alone = asking(
            name, ways[-1], 4 * count, unseen(name), **({"kinds": ("background",)} if ways[-1] else {"pair": 0.0})
        )
        single = [task for task in alone if len(shown(task).items) == 1]
        halves = [[task for task in single if concept_of(task) == concept][: count // 2] for concept in ASKED]
        drawn = {title: [*halves[0], *halves[1]] if title == "large" else tasks for title in SIZES}
        yield name, ways[-1], {title: [resized(task, SIZES[title]) for task in each] for title, each in drawn.items()}


GROUPS = {"wordings": wordings, "styles": styles, "sizes": sizes}


def measure(part: str, plan: Plan) -> dict[str, dict[str, Any]]:
    """{pipeline and way in: {group: figures}} of a part."""
    table = {}
    for name, by, groups in GROUPS[part](plan.count):
        title = f"{name} by {by}" if by else name
        table[title] = compare(name, groups, plan.work / part / name, plan)
        print(title, {group: (row["erased"]["hits"], row["erased"]["of"]) for group, row in table[title].items()})
    return table


def compare(name: str, groups: Groups, out: Any, plan: Plan) -> dict[str, Any]:
    """{group: figures} of one evaluation: stock and regulated with the shipped banks of weapon and skull."""
    entries: list[Entry] = []
    for group, tasks in groups.items():
        for number, task in enumerate(tasks):
            place, seed = len(entries), IMAGE_SEED + number
            entries.append(entry(task, place, out / "sources", concept_of(task), seed=seed, group=group))
    summary = evaluate(
        pipeline(name),
        entries,
        out / "run",
        judges={"zoo": judge()},
        concepts=shipped(name),
        policies=("selective",),
        subjects={concept: ConceptTerms(concept, CONCEPTS[concept], CONCEPTS[concept]) for concept in ASKED},
        call=settings(name),
        batch=16,
        overwrite=plan.again,
    )
    rows = [row for row in read_rows(out / "run") if row["arm"] == "selective"]
    table = {}
    for group, counts in summary["arms"]["selective"]["groups"].items():
        located = [any(f["located"] for f in row["findings"].values()) for row in rows if row["group"] == group]
        low, high = counts["difference"]["ci95"]
        drop = (-counts["difference"]["left_minus_stock"], -high, -low)
        table[group] = figures(counts, rate(sum(located), len(located)), drop)
    return table
