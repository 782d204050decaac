"""`uvr demo`: first pictures of a handful of prompts, without and with regulation, each on disk when it is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import uvr_core
from uvr_core.engine.report import Finding
from uvr_core.files import to_json, write_whole
from uvr_core.sampling import Sampling

from . import concepts, judge
from .pipelines import load
from .recipes import RECIPES
from .sheets import contact_sheet, overlay, save_picture
from .tasks import Task, anchor_style, prompt_of, scenes_for, settings

ASKED = ("weapon", "weapon", "weapon", "skull", False, False)  # by the prompts in turn; False: nothing unsafe
FIRST_SEED, IMAGE_SEED = 500_000, 50_000
BATCH = 2  # costs hardly more than one picture at a time, and the first ones are there as soon


def tasks(pipeline: str, seed: int) -> list[Task]:
    """Held-out prompts for two objects each, in drawing styles that the anchors never saw."""
    unseen = tuple(style for style in RECIPES[pipeline].styles if style != anchor_style(pipeline))
    options: dict[str, Any] = {"split": "heldout", "styles": unseen, "pair": 1.0}
    return [
        scenes_for(pipeline, 1, unsafe=unsafe, first=FIRST_SEED + seed + index, **options)[0]
        for index, unsafe in enumerate(ASKED)
    ]


def draw(out: Path, pipeline: str = "flux", seed: int = 0) -> Iterator[dict[str, Any]]:
    """Draw the prompts in turn, stock and then regulated with the same seeds; give what came of each, JSON-ready.

    Args:
        out: folder for `pictures/N-stock.png`, `pictures/N-regulated.png`, the contact sheet `pictures.png` and
            `pictures.json`. They hold all that has been given so far.
        pipeline: one of the zoo's that draws from a prompt alone.
        seed: shifts the seeds of prompts and pictures.
    """
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    pipe = load(pipeline)
    prompts = [prompt_of(task) for task in tasks(pipeline, seed)]
    banks = [concepts(pipeline, name) for name in dict.fromkeys(filter(None, ASKED))]
    seeds = range(IMAGE_SEED + seed, IMAGE_SEED + seed + len(prompts))
    sampling = Sampling(prompts, seeds, call=settings(pipeline), batch_size=BATCH)
    stock = sampling.draw(pipe)
    regulated = sampling.draw(pipe, lambda batch: uvr_core.attach(pipe, concepts=banks))
    rows: list[dict[str, Any]] = []
    columns: list[Sequence[Image.Image]] = []
    for before, after in zip(stock, regulated, strict=True):
        for place, pair in enumerate(zip(before.images, after.images, strict=True)):
            findings = [finding for finding in after.report.findings if finding.sample == place and finding.located]
            row = {"number": len(rows) + 1, "of": len(prompts), "prompt": prompts[len(rows)], **compare(pair, findings)}
            for title, picture in zip(("stock", "regulated"), pair, strict=True):
                row[title]["file"] = f"pictures/{row['number']}-{title}.png"
                picture.save(out / row[title]["file"])
            rows.append(row)
            core = np.any([finding.core for finding in findings], axis=0) if findings else None
            columns.append((pair[0], overlay(pair[0], core), pair[1]))
            save_sheet(out / "pictures.png", columns)
            write_whole(out / "pictures.json", to_json({"pipeline": pipeline, "seed": seed, "pictures": rows}))
            yield row


def compare(pair: tuple[Image.Image, Image.Image], findings: Sequence[Finding]) -> dict[str, Any]:
    """What the judge sees in the stock and the regulated picture, and what the regulator says it located."""
    stock, regulated = ({"shows": sorted(names)} for names in judge()(list(pair)))
    return {
        "located": {finding.concept: finding.patches for finding in findings},
        "identical": bool(np.array_equal(np.asarray(pair[0]), np.asarray(pair[1]))),
        "stock": stock,
        "regulated": regulated,
    }


def save_sheet(path: Path, columns: Sequence[Sequence[Image.Image]]) -> None:
    """A row for each of stock, located and regulated; a column for each prompt."""
    titles = ("stock", "where a concept was located", "regulated")
    rows = [(title, list(images)) for title, images in zip(titles, zip(*columns, strict=True), strict=True)]
    save_picture(contact_sheet(rows), path)
