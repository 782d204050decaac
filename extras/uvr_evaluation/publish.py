"""`push`: a concept file and its card to the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs

import uvr_core
from uvr_core import UVRError
from uvr_core.concepts.hub import SUFFIX, HubFile
from uvr_core.hub import Repository, sha256_of

from .card import MARK, REPOSITORY, card

CARD = "README.md"
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@attrs.frozen
class Pushed:
    """What was committed.

    Attributes:
        place: where the file is, at its commit. card: the card's name there. sha256: of the file.
        paths: provenance entries that hold a path of this machine, which are public now (or are, once it is).
    """

    place: HubFile
    card: str
    sha256: str
    paths: tuple[str, ...]


def push(
    file: str | Path,
    repo: str,
    *,
    licence: str,
    base_model: str = "",
    name: str = "",
    private: bool = False,
) -> Pushed:
    """Commit a calibrated concept file and a generated card to `owner/name`, which is made if there is none.

    Nothing else is written: the bank is read first, so that what is pushed is a concept and safetensors alone. The card
    is README.md, unless the repository has one that was written by hand or for another file: then FILE.md beside it.

    Args:
        licence: of the concept file, as the Hub spells it ("mit", "cc-by-4.0", "other").
        base_model: owner/name of the model it was made on; "": what the file says.
        name: the file's name there; "": its own.

    Raises:
        UVRError: not a calibrated concept, no base model, or the Hub refuses.
    """
    path, name = Path(file), name or Path(file).name
    bank = uvr_core.load_concepts(path)
    if bank.calibration is None:
        raise UVRError(f"{path}: not calibrated, so that nobody could use it: `uvr calibrate` first")
    if not re.fullmatch(r"[\w-][\w.-]*" + re.escape(SUFFIX), name):
        raise UVRError(f"{name!r}: no name for a concept file; expected letters, digits, - and _, then {SUFFIX}")
    if not REPOSITORY.fullmatch(repo):
        raise UVRError(f"{repo!r}: no name of a repository; expected owner/name")
    if not LICENCE.fullmatch(licence):
        raise UVRError(f"{licence!r}: no licence identifier; expected one of the Hub's, like mit or cc-by-4.0")
    base_model = base_model or str(bank.provenance.get("model", ""))
    if not REPOSITORY.fullmatch(base_model):
        raise UVRError(
            f"{path}: says {base_model or 'nothing'!r} of the model that it was made on; name it: owner/name"
        )
    digest = sha256_of(path)
    text = card(bank, name, base_model=base_model, licence=licence, place=f"{repo}:{name}@COMMIT", sha256=digest)
    repository, card_name = Repository(repo), _card_name(Repository(repo), name)
    commit = repository.put(
        {name: path.read_bytes(), card_name: text.encode()}, f"Add {bank.name} for {base_model}", private=private
    )
    return Pushed(HubFile(repo, name, commit), card_name, digest, tuple(_paths("", bank.provenance)))


def _card_name(repository: Repository, file: str) -> str:
    try:
        commit = repository.commit()
        if CARD not in repository.files(commit):
            return CARD
        existing = repository.fetch(CARD, commit).read_text("utf-8", errors="replace")
    except UVRError:
        return CARD  # there is none yet, or committing will say why not
    return CARD if MARK.format(file=file) in existing else f"{file.removesuffix(SUFFIX)}.md"


def _paths(where: str, value: Any) -> list[str]:
    """Dotted names of the texts in a provenance that hold an absolute path."""
    if isinstance(value, dict):
        return [path for key, each in value.items() for path in _paths(f"{where}.{key}".lstrip("."), each)]
    if isinstance(value, list):
        return [path for each in value for path in _paths(where, each)]
    return [where] if isinstance(value, str) and re.search(r"(^|[\s=:\"'])(/\w|[A-Za-z]:\\|~/)", value) else []
