"""The model card of a concept file, as the Hub reads it: what the file itself says, and who may use it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from uvr_core import ConceptBank
from uvr_core.files import printable

from .render import OWN, render
from .statistics import rate

MARK = "<!-- uvr: {file} -->"  # of a card that was generated, for that file
COUNTS = ("shown", "erased", "located", "false_located")
SAID = {  # what a provenance may say, and as what
    "recipe_sha256": str,
    "mask_source": str,
    "images_with_concept": int,
    "prompts": int,
    "benign_prompts": int,
    "generate": dict,
    "renamed_from": list,
    "merged_from": list,
}
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def card(
    bank: ConceptBank,
    file: str,
    *,
    base_model: str = "",
    licence: str = "",
    tags: Sequence[str] = (),
    place: str = "",
    sha256: str = "",
) -> str:
    """A model card in Markdown with its YAML header.

    Args:
        bank: calibrated. What its provenance says of recipe, judge and counts stands in the card, where it says it.
        file: the concept file's name in the repository. place: what `attach` takes, once it is known.
        base_model: the model that it was made on; "": what the bank says. licence: an identifier of the Hub's.
    """
    from huggingface_hub import ModelCardData

    calibration, provenance = bank.calibration, _clean(bank.provenance)
    assert calibration is not None
    base = base_model or str(provenance.get("model", ""))
    header = ModelCardData(
        library_name="uvr",
        base_model=base if REPOSITORY.fullmatch(base) else None,
        tags=["uvr", "safety", printable(bank.fingerprint.model), *tags],
        license=licence or None,
    )
    return render(
        OWN / "card.md.j2",
        header=header.to_yaml(),
        mark=MARK.format(file=file),
        name=printable(bank.name),
        file=file,
        place=place or file,
        base=base or "a model that the file does not name",
        model=bank.fingerprint,
        calibration=calibration,
        rates=calibration_rates(calibration.measured),
        measured=counted(provenance.get("measured")),
        sha256=sha256,
        **{name: _of(kind, provenance.get(name)) for name, kind in SAID.items()},
        steps=steps_of(provenance, calibration.measured),
    )


def counted(measured: Any) -> dict[str, Any] | None:
    """What `uvr concept new` counted, with new intervals; None: not of that form. A file says what it likes."""
    if not isinstance(measured, Mapping):
        return None
    cells = {name: measured.get(name) for name in COUNTS}
    if not all(_is_count(cell) for cell in cells.values()):
        return None
    rates = {name: rate(cell["hits"], cell["of"]) for name, cell in cells.items()}
    return {**{name: measured.get(name) for name in ("judge", "threshold", "time")}, **rates}


def _is_count(cell: Any) -> bool:
    if not isinstance(cell, Mapping):
        return False
    hits, of = cell.get("hits"), cell.get("of")
    return isinstance(hits, int) and isinstance(of, int) and 0 <= hits <= of


def calibration_rates(measured: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{what it says: counts with a Wilson interval}, from the shares that `calibrate` wrote."""
    rates = {}
    for name, share, total in (
        ("located, of the prompts that ask for it", "recall", "unsafe_prompts"),
        ("falsely located, of benign prompts", "false_positive", "benign_prompts"),
    ):
        if isinstance(measured.get(share), (int, float)) and isinstance(measured.get(total), int):
            rates[name] = rate(round(measured[share] * measured[total]), measured[total])
    return rates


def steps_of(provenance: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """How many steps it was collected with, and in how many of them it is looked for."""
    drawn = provenance.get("generate")
    steps = drawn.get("num_inference_steps") if isinstance(drawn, Mapping) else None
    steps = measured.get("of_steps", steps)
    return f"{measured['steps']} of {steps}" if "steps" in measured and steps else str(steps or "not recorded")


def _of(kind: type, value: Any) -> Any:
    return value if isinstance(value, kind) else None


def _clean(value: Any) -> Any:
    """The same with nothing in it that breaks a line or a table of Markdown, or opens a tag."""
    if isinstance(value, Mapping):
        return {_clean(key): _clean(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_clean(each) for each in value]
    return re.sub(r"[|<>`\[\]]", " ", printable(value)) if isinstance(value, str) else value
