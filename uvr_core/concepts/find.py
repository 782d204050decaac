"""From what a user calls a concept to its bank: a path, a name in the concept folder, or one that a package ships."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import plugins
from ..errors import ConceptMismatch, did_you_mean
from .bank import ConceptBank
from .file import is_file, load_concepts
from .hub import HubFile


def resolve(concepts: object, folder: str | os.PathLike[str] | None = None) -> list[tuple[ConceptBank, object | None]]:
    """Normalise the `concepts` argument of `attach` to (bank, its own policy or None) pairs.

    A string that is no file and has no folder in it is a name: in `folder`, else in the folder that the UVR_CONCEPTS
    variable names, else among the concepts that installed packages ship. A name never leads out of the folder; a
    symbolic link that someone put there may. `owner/repo:file.safetensors@revision` is a file of the Hub.

    Raises:
        ConceptMismatch: nothing of that name, or load_concepts refuses the file.
    """
    if concepts is None:
        return []
    if isinstance(concepts, (str, os.PathLike, ConceptBank)):
        concepts = [concepts]
    if isinstance(concepts, Mapping):
        concepts = list(concepts.items())
    if not isinstance(concepts, Iterable):
        raise ConceptMismatch(f"concepts: expected a path, a ConceptBank or a list of them, got {concepts!r}")
    pairs: list[tuple[ConceptBank, object | None]] = []
    for entry in concepts:
        item, policy = entry if isinstance(entry, tuple) else (entry, None)
        if not isinstance(item, ConceptBank):
            item = load_concepts(_find(item, folder))
        pairs.append((item, policy))
    return pairs


def _find(item: object, folder: str | os.PathLike[str] | None) -> Path:
    if not isinstance(item, (str, os.PathLike)):
        raise ConceptMismatch(f"concepts: expected a path, a name or a ConceptBank, got {item!r}")
    path = Path(item)
    if not is_file(path) and (place := HubFile.parse(os.fspath(item))):
        return place.fetch()
    if is_file(path) or path.suffix == ".safetensors" or len(path.parts) > 1:
        return path
    root = folder or os.environ.get("UVR_CONCEPTS")
    if root and path.name and is_file(path_in_folder := Path(root) / f"{path.name}.safetensors"):
        return path_in_folder
    shipped = plugins.registry().names("concept")
    if path.name in shipped:
        return Path(str(shipped[path.name][0]))
    in_folder = {p.stem for p in Path(root).glob("*.safetensors")} if root else set()
    hint = did_you_mean(path.name, in_folder | set(shipped))
    raise ConceptMismatch(
        f"concept {path.name!r}: no such file, and no concept of that name{hint} Pass a path, or name your folder in "
        "UVR_CONCEPTS"
    )
