"""From a recipe to a concept file: collect, calibrate, measure on a third set, write the file, its card and a sheet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from PIL import Image

import uvr_core
from uvr_core import ConceptBank, ConceptTerms, Judge, UVRError
from uvr_core.files import to_json, write_whole
from uvr_core.fit.masks import Terms, finder_of
from uvr_core.fit.recipe import Line, Recipe, Sets, expand, texts

from .card import card
from .comparison import evaluate
from .prompt_sets import Task

Show = Callable[[str, int, int], None]
CALIBRATE_SEED, MEASURE_SEED, TEXT_SEED = (
    10_000,
    20_000,
    30_000,
)  # added to the recipe's seed: no picture is drawn twice
SHOWN = 8  # unsafe tasks of the contact sheet


@attrs.frozen(kw_only=True, eq=False)
class Making:
    """What a concept is made from, and where.

    Attributes:
        model: its name, for the card. call: arguments of the pipeline's call.
        masks: as `uvr_core.collect` takes them; told: in a word. judge: who counts.
        text: learn which tokens of a prompt carry the concept too; see `uvr_core.calibrate_text`.
    """

    recipe: Recipe
    out: Path
    model: str
    masks: Any
    told: str
    judge: tuple[str, Judge]
    call: Mapping[str, Any]
    adapter: str | None = None
    batch: int = 4
    text: bool = False
    show: Show = lambda what, done, total: None

    @property
    def file(self) -> Path:
        """The concept file."""
        return self.out / f"{self.recipe.name}.safetensors"

    def origin(self) -> dict[str, Any]:
        """What the finished parts of a run that was cut must have been made from, to be gone on with."""
        return {
            "recipe": self.recipe.digest,
            "model": self.model,
            "masks": self.told,
            "judge": self.judge[0],
            **({"text": True} if self.text else {}),
            "call": {key: repr(value) for key, value in sorted(self.call.items())},
        }

    def counter(self, what: str, total: int) -> Callable[[int], None]:
        """What is told how many images more are done."""
        done = 0

        def advance(images: int) -> None:
            nonlocal done
            done += images
            self.show(what, done, total)

        self.show(what, 0, total)
        return advance


def make(pipe: Any, making: Making) -> dict[str, Any]:
    """Make a concept; gone on with where an earlier run of the same was cut.

    Returns:
        {"file", "card", "sheet", "name", "calibration", "measured"}, see `figures`.

    Raises:
        UVRError: the folder holds parts of another concept; no picture shows it; no threshold locates it.
    """
    recipe, sets = making.recipe, expand(making.recipe)
    making.out.mkdir(parents=True, exist_ok=True)
    _begin(making)
    collected = _kept(making.out / "collected.safetensors", lambda: _collect(pipe, making, sets))
    bank = _kept(making.out / "calibrated.safetensors", lambda: _calibrate(pipe, making, sets, collected))
    if making.text:
        calibrated = bank
        bank = _kept(making.out / "told.safetensors", lambda: _told(pipe, making, sets, calibrated))
    assert bank.calibration is not None
    if bank.calibration.measured["recall"] == 0:
        raise UVRError(
            f"{recipe.name}: no threshold within {recipe.target:.3g} false positives locates it in any of "
            f"{len(sets.calibrate)} pictures; look at whether the model draws it, or try --masks pairs"
        )
    name, judge = making.judge
    summary = evaluate(
        pipe,
        _tasks(recipe, sets),
        making.out / "measured",
        judges={name: judge},
        concepts=bank,
        subjects={recipe.name: ConceptTerms(recipe.name, recipe.labels or recipe.words, recipe.words)},
        call=making.call,
        batch=making.batch,
        adapter=making.adapter,
        progress=making.show,
    )
    measured = figures(summary, name)
    provenance = {
        **bank.provenance,
        "model": making.model,
        "recipe": recipe.text,
        "recipe_sha256": recipe.digest,
        "measured": measured,
    }
    bank = attrs.evolve(bank, provenance=provenance)
    bank.save(making.file)
    write_whole(making.out / "README.md", card(bank, making.file.name))
    contact_sheet(making.out / "measured", making.out / "contact.png")
    return {
        "file": str(making.file),
        "card": str(making.out / "README.md"),
        "sheet": str(making.out / "contact.png"),
        "name": recipe.name,
        "calibration": attrs.asdict(bank.calibration),
        "measured": measured,
    }


def _begin(making: Making) -> None:
    """Note what is being made; raise UVRError where the folder holds something else."""
    path, origin = making.out / "making.json", making.origin()
    if path.is_file():
        before = json.loads(path.read_text("utf-8"))
        if differing := sorted(key for key in origin | before if before.get(key) != origin.get(key)):
            raise UVRError(
                f"{making.out}: holds a concept made with another {' and '.join(differing)}; name another --out"
            )
        return
    if any(making.out.iterdir()):
        raise UVRError(f"{making.out}: holds other files; name a new folder")
    write_whole(path, to_json(origin) + "\n")


def _kept(path: Path, make_bank: Callable[[], ConceptBank]) -> ConceptBank:
    if path.is_file():
        return uvr_core.load_concepts(path)
    bank = make_bank()
    bank.save(path)
    return bank


def _seen(making: Making, shown: Sequence[Line]) -> dict[str, Any]:
    """What `collect` and `calibrate_text` alike are told of drawing these lines and of where the concept is in them."""
    return {
        "masks": making.masks,
        "words": making.recipe.words,
        "without": [line.without for line in shown] if making.masks == "pairs" else None,
        "adapter": making.adapter,
        "batch_size": making.batch,
        "generate": dict(making.call),
    }


def _images(making: Making, shown: Sequence[Line], benign: Sequence[Line]) -> int:
    """How many pictures either draws."""
    return finder_of(making.masks, Terms(making.recipe.name)).passes * len(shown) + len(benign)


def _collect(pipe: Any, making: Making, sets: Sets) -> ConceptBank:
    recipe, shown, benign = making.recipe, sets.collect, sets.collect_benign
    return uvr_core.collect(
        pipe,
        recipe.name,
        prompts=texts(shown),
        benign_prompts=texts(benign),
        mask_source=making.told,
        seed=recipe.seed,
        progress=making.counter(f"collecting {recipe.name}", _images(making, shown, benign)),
        **_seen(making, shown),
    )


def _calibrate(pipe: Any, making: Making, sets: Sets, bank: ConceptBank) -> ConceptBank:
    recipe = making.recipe
    return uvr_core.calibrate(
        pipe,
        bank,
        texts(sets.calibrate),
        texts(sets.calibrate_benign),
        recipe.target,
        masks=making.masks if callable(making.masks) else None,
        adapter=making.adapter,
        seed=recipe.seed + CALIBRATE_SEED,
        batch_size=making.batch,
        generate=dict(making.call),
        progress=making.counter(f"calibrating {recipe.name}", len(sets.calibrate) + len(sets.calibrate_benign)),
    )


def _told(pipe: Any, making: Making, sets: Sets, bank: ConceptBank) -> ConceptBank:
    recipe, shown, benign = making.recipe, sets.collect, [*sets.collect_benign, *sets.calibrate_benign]
    return uvr_core.calibrate_text(
        pipe,
        bank,
        texts(shown),
        texts(benign),
        seed=recipe.seed + TEXT_SEED,
        progress=making.counter(f"reading the text of {recipe.name}", _images(making, shown, benign)),
        **_seen(making, shown),
    )


def _tasks(recipe: Recipe, sets: Sets) -> list[Task]:
    lines: list[tuple[Line, str]] = [(line, recipe.name) for line in sets.measure]
    lines += [(line, "") for line in sets.measure_benign]
    return [
        Task(index, line.text, recipe.seed + MEASURE_SEED + index, concept, group=concept or "benign")
        for index, (line, concept) in enumerate(lines)
    ]


def figures(summary: Mapping[str, Any], judge: str) -> dict[str, Any]:
    """What the third set says: counts {"hits", "of", "rate", "ci95"} of `shown` (stock), `erased` (of those), `located`
    and `false_located`; `judge` and its `threshold`; `time`, regulated over stock."""
    arm = next(arm for arm in summary["arms"].values() if arm["kind"] == "policy")
    unsafe = next(group for group in arm["groups"].values() if group["unsafe"])
    benign = next(group for group in arm["groups"].values() if not group["unsafe"])
    return {
        "judge": judge,
        "threshold": summary.get("threshold"),
        "shown": unsafe["stock_shown"],
        "erased": unsafe["erased"],
        "located": unsafe["located"],
        "false_located": benign["false_located"],
        "time": arm["time"]["ratio_to_stock"] if arm["time"] else None,
    }


def contact_sheet(folder: Path, path: Path, side: int = 160) -> None:
    """The first unsafe tasks, stock above regulated, and the first benign ones below."""
    images = {arm.name: sorted(arm.glob("*.png")) for arm in sorted((folder / "images").iterdir()) if arm.is_dir()}
    names = sorted(images, key=lambda name: (name != "stock", name))
    tasks = json.loads((folder / "config.json").read_text("utf-8"))["tasks"]
    rows: list[list[Path]] = []
    for unsafe in (True, False):
        numbers = [task["index"] for task in tasks if bool(task["concept"]) == unsafe][:SHOWN]
        rows += [[file for file in images[name] if int(file.stem) in numbers] for name in names]
    sheet = Image.new("RGB", (SHOWN * (side + 4) + 4, len(rows) * (side + 4) + 4), "white")
    for y, row in enumerate(rows):
        for x, file in enumerate(row):
            with Image.open(file) as picture:
                sheet.paste(picture.convert("RGB").resize((side, side)), (4 + x * (side + 4), 4 + y * (side + 4)))
    temporary = path.with_name(f".{path.name}")
    sheet.save(temporary, format="PNG")
    temporary.replace(path)


def nobody(images: Sequence[Any]) -> list[dict[str, float]]:
    """A judge who sees nothing, where there is none: located and falsely located are still counted."""
    return [{} for _ in images]
