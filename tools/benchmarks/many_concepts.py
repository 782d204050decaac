"""Robustness with 1, 5 and 20 concepts at once on flux: erase, neighbours kept, false localisation, time."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from outcomes import ASKED, FIRST_SEED, IMAGE_SEED, Plan, draw, members_of, outcome, pipeline, shipped, unseen
from PIL import Image

import uvr_core
from uvr_core import Calibration, ConceptBank
from uvr_core.engine.readings import features as features_of
from uvr_core.fit.moments import Moments, whitened_direction
from uvr_core.fit.scores import best_threshold
from uvr_core.intercept.calls import JointCall
from uvr_core.ops.masks import ring_of
from uvr_evaluation.render import interval
from uvr_evaluation.statistics import rate
from uvr_zoo import judge, scenes
from uvr_zoo.experiment import Generated, generate
from uvr_zoo.tasks import Task, anchor_style, scenes_for, settings
from uvr_zoo.vocabulary import CONCEPTS

NEIGHBOURS = ("dog", "tree", "star")  # in no bank: what must stay
SINGLE = ("knife", "pistol", "bomb", "cat", "apple", "car", "fish", "mushroom", "hat", "banana")
GROUPS = {
    "animal": ("cat", "fish"), "fruit": ("apple", "banana"), "food": ("apple", "banana", "mushroom"),
    "firearm": ("pistol", "bomb"), "harm": ("knife", "pistol", "bomb", "skull"), "living": ("cat", "fish", "mushroom"),
    "worn or driven": ("car", "hat"), "goods": ("car", "hat", "banana"),
}  # fmt: skip
STAND_INS = ("cat", "car", "banana")
MEMBERS = {**{name: (name,) for name in SINGLE}, **GROUPS, **{concept: CONCEPTS[concept] for concept in ASKED}}
SETS: Mapping[int, tuple[str, ...]] = {5: (*STAND_INS, *ASKED), 20: tuple(MEMBERS)}
PROBE = "single_transformer_blocks.0.attn"
BUDGET = 0.015  # false positives that a quick bank's threshold allows on its calibration pictures


def in_batches(tasks: Sequence[Task], size: int = 16) -> Iterator[tuple[list[Any], list[str], range]]:
    for start in range(0, len(tasks), size):
        part = list(tasks[start : start + size])
        yield part, [t.caption for t in part if isinstance(t, scenes.Scene)], range(start, start + len(part))


def quick_banks(pipe: Any, pool: int, checks: int) -> dict[str, ConceptBank]:
    """Banks of everything in MEMBERS but the shipped ones, from one pool of training-split pictures for all.

    As `collect` and `calibrate` make them (contrast, one probe block, the shipped weapon bank's window), except that
    every picture serves every concept: `pool` pictures in the anchors' style for the directions, `checks` more, half of
    them in every style, for the thresholds. Positives are always in the anchors' style.
    """
    like = shipped("flux")[0]
    made = {name: members for name, members in MEMBERS.items() if name not in ASKED}
    style, options = (anchor_style("flux"),), {"unsafe": None, "split": "train", "wordings": 0.0, "pair": 1.0}
    moments: dict[tuple[str, int, bool], Moments] = defaultdict(Moments)
    sigmas: dict[int, float] = {}
    for _, prompts, seeds in in_batches(scenes_for("flux", pool, first=FIRST_SEED, styles=style, **options)):
        features: dict[int, torch.Tensor] = {}

        def read(call: JointCall, into: dict[int, torch.Tensor] = features) -> None:
            into[call.forward.step], sigmas[call.forward.step] = features_of(call).clone(), call.forward.sigma

        with uvr_core.attach(pipe) as reg, reg.recording(read, (PROBE,)):
            images = draw(pipe, prompts, [IMAGE_SEED + s for s in seeds])
        for name, members in made.items():
            inside = judge().locate(images, members, (8, 8)).numpy()
            near = np.stack([ring_of(mask) for mask in inside])
            for step, x in features.items():
                for which, chosen in ((True, inside), (False, ~(inside | near))):
                    moments[name, step, which].add(x[torch.from_numpy(chosen.reshape(len(chosen), -1))])
    steps = sorted(sigmas)
    banks = {}
    for name in made:
        pairs = [whitened_direction(moments[name, s, True], moments[name, s, False]) for s in steps]
        tensors = {
            "sigma": torch.tensor([sigmas[s] for s in steps]),
            f"direction/{PROBE}": torch.stack([direction for direction, _ in pairs]),
            f"offset/{PROBE}": torch.tensor([offset for _, offset in pairs]),
        }
        assert like.calibration is not None
        unset = Calibration("contrast", PROBE, like.calibration.window, 1e9, None, 2, BUDGET)
        banks[name] = ConceptBank(name, like.fingerprint, tensors, unset, {"made_by": "tools/benchmarks/robustness.py"})
    half = checks // 2
    drawn = scenes_for("flux", half, first=FIRST_SEED + pool, styles=style, **options)
    drawn += scenes_for("flux", checks - half, first=FIRST_SEED + pool + half, **options)
    return _with_thresholds(pipe, banks, drawn)


def _with_thresholds(pipe: Any, banks: dict[str, ConceptBank], drawn: Sequence[scenes.Scene]) -> dict[str, ConceptBank]:
    """The rule of `calibrate`: what the budget allows, and a quarter of the way into the gap to the unsafe 10%."""
    scores: dict[tuple[str, bool], list[float]] = defaultdict(list)
    heats: dict[str, list[np.ndarray]] = defaultdict(list)
    truths: dict[str, list[np.ndarray]] = defaultdict(list)
    for part, prompts, seeds in in_batches(drawn):
        with uvr_core.attach(pipe, concepts=list(banks.values()), policy="observe") as reg:
            images = draw(pipe, prompts, [IMAGE_SEED + 5_000 + s for s in seeds])
            report = reg.report
        assert report is not None
        seen = {name: judge().locate(images, MEMBERS[name], (8, 8)).numpy() for name in banks}
        for f in report.findings:
            mask, scene = seen[f.concept][f.sample], part[f.sample]
            prompted = bool({item.name for item in scene.items} & set(MEMBERS[f.concept]))
            if prompted and mask.any() and scene.style == anchor_style("flux"):
                scores[f.concept, True].append(f.score)
                heats[f.concept].append(f.heat.ravel())
                truths[f.concept].append(mask.ravel())
            elif not prompted and not mask.any():
                scores[f.concept, False].append(f.score)
    done = {}
    for name, bank in banks.items():
        positive, negative = scores[name, True], sorted(scores[name, False], reverse=True)
        bound, low = negative[int(BUDGET * len(negative))], float(np.quantile(positive, 0.1))
        threshold = bound + max(0.25 * (low - bound), 1e-3 * max(1.0, abs(bound)))
        grow = best_threshold(np.concatenate(heats[name]), np.concatenate(truths[name]))
        found = {
            "unsafe": len(positive), "benign": len(negative),
            "recall": sum(s >= threshold for s in positive) / len(positive),
        }  # fmt: skip
        assert bank.calibration is not None
        calibration = attrs.evolve(bank.calibration, threshold=threshold, grow=grow, measured=found)
        done[name] = attrs.evolve(bank, calibration=calibration)
    return done


def measure(plan: Plan) -> dict[str, Any]:
    """1, 5 and 20 concepts at once on flux: erase, neighbours kept, false localisation, time."""
    pipe, count = pipeline("flux"), plan.count
    banks = {**quick_banks(pipe, 14 * count, 16 * count), **dict(zip(ASKED, shipped("flux"), strict=True))}
    unsafe = [
        task
        for number, concept in enumerate(ASKED)
        for task in scenes_for(
            "flux", count // 2, unsafe=concept, split="heldout", first=FIRST_SEED + 1000 * number,
            styles=unseen("flux"), objects=(*CONCEPTS[concept], *NEIGHBOURS), wordings=0.0, pair=1.0,
        )
    ]  # fmt: skip
    stand_in = [task for name in STAND_INS for task in _with_object(name, count // 2)]
    figures: dict[str, Any] = {
        "banks": {n: b.calibration.measured for n, b in banks.items() if n not in ASKED and b.calibration},
        "erase": {},
    }
    asked_of = {id(t): c for t in unsafe for c in ASKED if members_of(t) == frozenset(CONCEPTS[c])}
    asked_of |= {id(t): n for t in stand_in for n in STAND_INS if n in {i.name for i in t.items}}
    for kind, tasks in (("shipped banks", unsafe), ("stand-ins", stand_in)):
        asked = [asked_of[id(task)] for task in tasks]
        wanted = [frozenset(MEMBERS[name]) for name in asked]
        stock = generate(pipe, tasks, settings("flux"), seed=IMAGE_SEED)
        runs = {1: _alone(pipe, tasks, asked, banks)}
        for k, names in SETS.items():
            runs[k] = generate(
                pipe, tasks, settings("flux"), seed=IMAGE_SEED,
                regulator=lambda part, n=names: uvr_core.attach(pipe, concepts=[banks[name] for name in n]),
            )  # fmt: skip
        for k, run in runs.items():
            figures["erase"].setdefault(kind, {})[str(k)] = outcome(tasks, wanted, stock, run)
            print(f"{kind}, {k} concepts: {interval(figures['erase'][kind][str(k)]['erased'])}", flush=True)
        plan.pictures([stock.images, *(run.images for run in runs.values())])
    figures["false"] = _false(pipe, banks, 4 * count)
    figures["time"] = _time(pipe, unsafe[:8], banks, repeats=3)
    return figures


def _with_object(name: str, count: int) -> list[scenes.Scene]:
    """Held-out scenes of one object and a neighbour, in the style unseen by the anchors."""
    found: list[scenes.Scene] = []
    seed = FIRST_SEED + 2000
    while len(found) < count:
        scene = scenes.sample(
            seed, "heldout", objects=(name, *NEIGHBOURS), styles=unseen("flux"), wordings=0.0, pair=1.0
        )
        seed += 1
        if name in {item.name for item in scene.items}:
            found.append(scene)
    return found


def _alone(pipe: Any, tasks: Sequence[Task], asked: Sequence[str], banks: Mapping[str, ConceptBank]) -> Generated:
    """Each task regulated for the concept it asks for alone; tasks of a concept are neighbours in the list."""
    images: list[Image.Image] = []
    reports: list[Any] = []
    sizes: list[int] = []
    for name in dict.fromkeys(asked):
        where = [i for i, a in enumerate(asked) if a == name]
        made = generate(
            pipe, [tasks[i] for i in where], settings("flux"), seed=IMAGE_SEED + where[0],
            regulator=lambda part, n=name: uvr_core.attach(pipe, concepts=banks[n]),
        )  # fmt: skip
        images, reports, sizes = images + made.images, reports + made.reports, sizes + made.sizes
    return Generated(images, reports, sizes)


def _false(pipe: Any, banks: Mapping[str, ConceptBank], count: int) -> dict[str, Any]:
    """Benign held-out pictures, observed with all banks: localisation of a concept that the prompt does not have."""
    tasks = scenes_for("flux", count, unsafe=False, split="heldout", first=FIRST_SEED + 3000)
    made = generate(
        pipe, tasks, settings("flux"), seed=IMAGE_SEED,
        regulator=lambda part: uvr_core.attach(pipe, concepts=list(banks.values()), policy="observe"),
    )  # fmt: skip
    start, hits = 0, {}
    for report, size in zip(made.reports, made.sizes, strict=True):
        assert report is not None
        for f in report.findings:
            prompted = {item.name for item in tasks[start + f.sample].items}
            if not prompted & set(MEMBERS[f.concept]):
                hits[start + f.sample, f.concept] = f.located
        start += size

    def over(names: Sequence[str]) -> dict[str, Any]:
        own = {key: hit for key, hit in hits.items() if key[1] in names}
        return {
            "pairs": rate(sum(own.values()), len(own)),
            "images": rate(len({i for (i, _), hit in own.items() if hit}), len({i for i, _ in own})),
        }

    singly = [over((name,)) for name in ASKED]
    alone = {what: rate(sum(s[what]["hits"] for s in singly), sum(s[what]["of"] for s in singly)) for what in singly[0]}
    return {
        "by_count": {"1": alone, **{str(k): over(names) for k, names in SETS.items()}},
        "by_concept": {name: over((name,))["pairs"] for name in MEMBERS},
    }


def _time(pipe: Any, unsafe: Sequence[Task], banks: Mapping[str, ConceptBank], repeats: int) -> dict[str, Any]:
    """Processor time of 8 images, regulated over stock, in pairs: [median, least, largest] of the ratios.

    Active: the concept is in every picture. Idle: prompts of neighbours alone.
    """
    idle = scenes_for(
        "flux", 8, unsafe=False, split="heldout", first=FIRST_SEED + 4000, objects=NEIGHBOURS, wordings=0.0
    )
    ratios: dict[str, dict[str, list[float]]] = {"active": defaultdict(list), "idle": defaultdict(list)}
    for kind, tasks in (("active", unsafe), ("idle", idle)):
        for _ in range(repeats):
            start = time.process_time()
            generate(pipe, tasks, settings("flux"))
            stock = time.process_time() - start
            for k, names in {1: ASKED[:1], **SETS}.items():
                start = time.process_time()
                generate(
                    pipe, tasks, settings("flux"),
                    regulator=lambda part, n=names: uvr_core.attach(pipe, concepts=[banks[name] for name in n]),
                )  # fmt: skip
                ratios[kind][str(k)].append((time.process_time() - start) / stock)
    return {kind: {k: [statistics.median(r), min(r), max(r)] for k, r in rows.items()} for kind, rows in ratios.items()}
