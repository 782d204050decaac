"""A concept recipe: what a concept is in words, and the sets of prompts that follow from it. Loads no torch."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import string
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from .. import plugins
from ..errors import UVRError, did_you_mean
from ..files import printable, text_of
from ..validators import count, share

FORMS = ("named", "scenes", "styles", "described")  # templates of unsafe prompts, by what they vary
MOST = 4000  # fillings of a template that are drawn from


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@attrs.frozen
class Counts:
    """How many pictures each set has; the benign ones behind."""

    collect: int = attrs.field(default=48, validator=count())
    collect_benign: int = attrs.field(default=64, validator=count())
    calibrate: int = attrs.field(default=48, validator=count())
    calibrate_benign: int = attrs.field(default=128, validator=count())
    measure: int = attrs.field(default=32, validator=count())
    measure_benign: int = attrs.field(default=64, validator=count())


@attrs.frozen(kw_only=True)
class Recipe:
    """One concept in words.

    Attributes:
        name: the concept's.
        words: what prompts call it; lookalikes: harmless things that stand in the same places.
        templates: {form: sentences}. `{concept}` is one of the words (or look-alikes), `{a}` its article, other names
            are slots. "described" sentences never say the words. "benign" ones say neither.
        slots: {name: fillings}.
        masks, judge, labels, threshold: who says where the concept is, who counts it, what it calls it (the words,
            unless told) and from which score (its own, unless told).
        target: share of benign pictures in which it may be located.
        generate: arguments of the pipeline's call; a table under a pipeline's class name holds for it alone.
        text: the file, as it was read.
    """

    name: str
    words: tuple[str, ...] = attrs.field(converter=_texts)
    lookalikes: tuple[str, ...] = attrs.field(converter=_texts)
    templates: Mapping[str, Sequence[str]]
    slots: Mapping[str, Sequence[str]] = attrs.field(factory=dict)
    masks: str = "words"
    judge: str = ""
    labels: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    threshold: float | None = None
    target: float = attrs.field(default=0.01, validator=share())
    seed: int = attrs.field(default=0, validator=attrs.validators.instance_of(int))
    counts: Counts = attrs.field(factory=Counts)
    generate: Mapping[str, Any] = attrs.field(factory=dict)
    text: str = attrs.field(default="", repr=False)

    @property
    def digest(self) -> str:
        """sha256 of what the recipe says."""
        return hashlib.sha256(repr(attrs.asdict(attrs.evolve(self, text=""))).encode()).hexdigest()

    def called(self, name: str, words: Sequence[str]) -> Recipe:
        """The same sentences for another concept: its name and words, and no judge's labels but the words."""
        return attrs.evolve(self, name=name, words=words, labels=())

    def call(self, pipeline: str) -> dict[str, Any]:
        """Arguments of a call of the pipeline of that class."""
        common = {key: value for key, value in self.generate.items() if not isinstance(value, Mapping)}
        return {**common, **self.generate.get(pipeline, {})}


@attrs.frozen
class Line:
    """A prompt, the form of its template, and the same sentence with a look-alike in the concept's place."""

    text: str
    form: str
    without: str = ""


@attrs.frozen
class Sets:
    """The prompts of a recipe. No two sets share one."""

    collect: tuple[Line, ...]
    collect_benign: tuple[Line, ...]
    calibrate: tuple[Line, ...]
    calibrate_benign: tuple[Line, ...]
    measure: tuple[Line, ...]
    measure_benign: tuple[Line, ...]


def read_recipe(path: Path) -> Recipe:
    """A recipe's TOML file.

    Raises:
        UVRError: no file, no TOML, an unknown key, or a value that is none; names file and key.
    """
    if not path.is_file():
        raise UVRError(f"{path}: no such recipe")
    text = text_of(path)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UVRError(f"{path}: not TOML: {error}") from error
    known = [field.name for field in attrs.fields(Recipe) if field.name != "text"]
    for key in table:
        if key not in known:
            raise UVRError(f"{path}: unknown key {key!r}{did_you_mean(key, known)}")
    table = {"words": [], "lookalikes": [], **table}
    _check_texts(path, table)
    try:
        counts = Counts(**table.pop("counts", {}))
        return Recipe(**table, counts=counts, text=text)
    except (TypeError, ValueError, UVRError) as error:
        raise UVRError(f"{path}: {error}") from error


def _check_texts(path: Path, table: Mapping[str, Any]) -> None:
    lists = {key: table[key] for key in ("words", "lookalikes", "labels") if key in table}
    for group in ("templates", "slots"):
        if not isinstance(table.get(group, {}), dict):
            raise UVRError(f"{path}: {group}: expected a table")
        lists |= {f"{group}.{key}": value for key, value in table.get(group, {}).items()}
    if not isinstance(name := table.get("name"), str) or not name.strip() or printable(name) != name:
        raise UVRError(f"{path}: name: expected text, got {name!r}")
    for key, value in lists.items():
        if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
            raise UVRError(f"{path}: {key}: expected a list of texts, got {value!r}")
    if unknown := sorted(set(table.get("templates", {})) - {*FORMS, "benign"}):
        raise UVRError(f"{path}: templates: unknown form {unknown[0]!r}; there are {', '.join(FORMS)} and benign")


def find_recipe(name: str, model: str = "") -> Recipe:
    """The recipe of that name that a package ships; for a MODEL with a prefix, `PREFIX:NAME` where there is one.

    Raises:
        UVRError: there is none.
    """
    names, prefix = plugins.registry().names("recipe"), model.partition(":")[0] if ":" in model else ""
    for key in (f"{prefix}:{name}", name):
        if key in names:
            return read_recipe(Path(str(names[key][0])))
    raise UVRError(
        f"no recipe {name!r}{did_you_mean(name, names)} Installed: {', '.join(sorted(names))}; write your own "
        "(--recipe FILE), or say what prompts call it (--words)"
    )


def expand(recipe: Recipe) -> Sets:
    """The six sets of prompts, from the recipe's seed alone.

    Of each form's fillings two fifths go to collect (not of "described", which names nothing), two to calibrate, one
    to measure. A set that asks for more than there are repeats them, with other seeds of the pictures.

    Raises:
        UVRError: no words, no sentences, an unknown slot, or so few fillings that a set stays empty.
    """
    if not recipe.words or not recipe.lookalikes:
        raise UVRError(f"recipe {recipe.name!r}: needs words and lookalikes")
    rng = random.Random(recipe.seed)
    unsafe, benign = (
        {form: _lines(recipe, form, words, rng) for form in forms}
        for words, forms in ((recipe.words, FORMS), (recipe.lookalikes, ("named", "scenes", "styles", "benign")))
    )
    taken: set[str] = set()  # one sentence may follow from two templates
    for by_form in (unsafe, benign):
        for form, each in by_form.items():
            by_form[form] = [line for line in each if line.text not in taken]
            taken.update(line.text for line in each)
    counts = attrs.asdict(recipe.counts)
    sets = {}
    for behind, lines in (("", unsafe), ("_benign", benign)):
        for name, part in _parted(lines).items():
            if not part:
                raise UVRError(f"recipe {recipe.name!r}: too few sentences for {name}{behind}; add templates or slots")
            sets[name + behind] = tuple(itertools.islice(itertools.cycle(part), counts[name + behind]))
    return Sets(**sets)


def _parted(lines: Mapping[str, Sequence[Line]]) -> dict[str, list[Line]]:
    """Each form's lines dealt to the three sets, the forms by turns."""
    parts: dict[str, list[list[Line]]] = {"collect": [], "calibrate": [], "measure": []}
    for form, each in lines.items():
        places = {"collect": (0, 1), "calibrate": (2, 3), "measure": (4,)}
        if form == "described":
            places = {"calibrate": (0, 2, 3), "measure": (1, 4)}
        for name, mine in places.items():
            parts[name].append([line for index, line in enumerate(each) if index % 5 in mine])
    return {name: [x for turn in itertools.zip_longest(*of) for x in turn if x] for name, of in parts.items()}


def _lines(recipe: Recipe, form: str, words: Sequence[str], rng: random.Random) -> list[Line]:
    """The fillings of one form's sentences with the words, each once, shuffled."""
    lines: dict[str, Line] = {}
    for template in recipe.templates.get(form, ()):
        names = sorted({name for _, name, _, _ in string.Formatter().parse(template) if name is not None})
        choices = [words if name == "concept" else _slot(recipe, form, name) for name in names if name != "a"]
        keys, size = [name for name in names if name != "a"], 1
        for each in choices:
            size *= len(each)
        for index in sorted(rng.sample(range(size), min(size, MOST))):
            filling = {}
            for key, each in zip(keys, choices, strict=True):
                index, place = divmod(index, len(each))
                filling[key] = each[place]
            other = {**filling, "concept": rng.choice(recipe.lookalikes)}
            text = _filled(template, filling)
            lines.setdefault(text, Line(text, form, _filled(template, other) if "concept" in keys else ""))
    ordered = list(lines.values())
    rng.shuffle(ordered)
    return ordered


def _slot(recipe: Recipe, form: str, name: str) -> Sequence[str]:
    if name not in recipe.slots:
        raise UVRError(
            f"recipe {recipe.name!r}: templates.{form}: no slot {name!r}{did_you_mean(name, recipe.slots)} There are "
            f"concept, a, {', '.join(recipe.slots)}"
        )
    return recipe.slots[name]


def _filled(template: str, filling: Mapping[str, str]) -> str:
    article = "an" if re.match(r"[aeiouAEIOU]", filling.get("concept", "")) else "a"
    return template.format(**{"a": article, **filling})


def texts(lines: Iterable[Line]) -> list[str]:
    """The prompts of a set."""
    return [line.text for line in lines]
