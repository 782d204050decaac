"""Reading a concept file, whoever made it, in bounded memory: whole and fit to be used, or refused with its name."""

from __future__ import annotations

import json
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import ConceptMismatch
from ..files import printable
from .bank import READABLE, SCHEMA, TIME, ConceptBank, Fingerprint
from .calibration import Calibration, SourceLook, TextCarriers

# What a file may make a reader allocate, at most. A bank of every block of a published model is some 200 MB.
MAX_HEADER = 16 * 2**20
MAX_FILE = 2**30
MAX_TENSORS = 4096
MAX_DEPTH = 64  # of JSON in the metadata
MAX_QUOTED = 500  # characters of a file's fault in a message

How = TypeVar("How", Calibration, SourceLook, TextCarriers)
_ANY_LEVEL = ("anchors", "source", "source_offset", "text", "text_offset")


def load_concepts(path: str | os.PathLike[str]) -> ConceptBank:
    """Read a concept file, whoever made it. The bank stays as it is when the file changes afterwards.

    Reads at most MAX_FILE bytes, and nothing before the header's claims are found to fit the file.

    Raises:
        ConceptMismatch: missing, unreadable, truncated, too large, of another schema, NaN or Inf in a tensor, shapes
            that disagree, a JSON key that stands twice, metadata that the engine could not use.
    """
    from safetensors import SafetensorError

    path = Path(path)
    if not is_file(path):
        raise ConceptMismatch(f"{printable(str(path))}: no such concept file")
    try:
        return _read(path)
    except ConceptMismatch as error:
        fault, cause = str(error), error.__cause__
    except SafetensorError as error:
        fault, cause = f"not a whole safetensors file: {error}", error
    except OSError as error:
        fault, cause = f"cannot be read: {error.strerror or error}", error
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        fault, cause = f"metadata is damaged: {type(error).__name__}: {error}", error
    fault = fault if len(fault) <= MAX_QUOTED else f"{fault[:MAX_QUOTED]}..."
    raise ConceptMismatch(f"{printable(str(path))}: {printable(fault)}") from cause


def is_file(path: Path) -> bool:
    """Path.is_file, but False where the system refuses the name itself: too long, or in a folder closed to us."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _check_header(path: Path) -> int:
    """The header's length. What a reader may allocate is bounded: it must fit the file, and both a fixed limit."""
    size = path.stat().st_size
    if size > MAX_FILE:
        raise ConceptMismatch(f"no concept file is that large ({size} bytes, at most {MAX_FILE} are read)")
    with path.open("rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    if size < 8 or claimed > min(size - 8, MAX_HEADER):
        raise ConceptMismatch(
            f"not a whole safetensors file (claims a header of {claimed} bytes, the file has {size}); "
            "copy it again or collect the concept again"
        )
    return claimed


def _read(path: Path) -> ConceptBank:
    from safetensors import safe_open

    header = _check_header(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("schema") not in READABLE:
            raise ConceptMismatch(f"expected schema {SCHEMA!r}, got {metadata.get('schema')!r}")
        if len(keys := file.keys()) > MAX_TENSORS:
            raise ConceptMismatch(f"{len(keys)} tensors; no concept has more than {MAX_TENSORS}")
        # Copies: what safetensors returns shows the file itself, and kills the process once that is cut short.
        tensors = {key: file.get_tensor(key).clone() for key in keys}
    with path.open("rb") as opened:
        json.loads(opened.read(8 + header)[8:], object_pairs_hook=_once)
    return _parse(metadata, tensors)


def _parse(metadata: Mapping[str, str], tensors: dict[str, torch.Tensor]) -> ConceptBank:
    if metadata.get("time") != TIME:
        raise ConceptMismatch(f"expected time convention {TIME!r}, got {metadata.get('time')!r}")
    knows = READABLE.index(metadata["schema"])
    fingerprint, provenance = (_json(metadata, key) for key in ("fingerprint", "provenance"))
    bank = ConceptBank(
        metadata["name"],
        Fingerprint(**fingerprint),
        tensors,
        _calibration(metadata, "calibration", Calibration),
        provenance,
        verification=_calibration(metadata, "verification", Calibration) if knows >= 1 else None,
        source=_calibration(metadata, "source", SourceLook) if knows >= 2 else None,
        text=_calibration(metadata, "text", TextCarriers) if knows >= 3 else None,
    )
    _check_shapes(bank)
    return bank


def _calibration(metadata: Mapping[str, str], key: str, kind: type[How]) -> How | None:
    fields = _json(metadata, key)
    if fields is not None and not isinstance(fields, dict):
        raise ConceptMismatch(f"{key}: expected dict, got {type(fields).__name__}")
    return None if fields is None else kind(**fields)


def _check_shapes(bank: ConceptBank) -> None:
    """Raise ConceptMismatch unless every tensor is of a known kind and of the shape that goes with it."""
    bins = len(bank.tensors["sigma"]) if "sigma" in bank.tensors else 0
    for key, tensor in bank.tensors.items():
        kind, _, probe = key.partition("/")
        good = {
            "anchors": tensor.ndim == 2 and len(tensor) > 0 and tensor.shape[-1] == bank.width,
            "direction": tuple(tensor.shape) in ((bins, bank.width), (bins, 2 * bank.width)),
            "offset": tuple(tensor.shape) == (bins,),
            "origin": tuple(tensor.shape) == (bins, 2 * bank.width),
            "origin_offset": tuple(tensor.shape) == (bins,),
            "token": tuple(tensor.shape) == (bins, bank.width),
            "text": tuple(tensor.shape) == (1, bank.width),
            "text_offset": tuple(tensor.shape) == (1,),
            "source": tuple(tensor.shape) == (1, 2 * bank.width),
            "source_offset": tuple(tensor.shape) == (1,),
            "sigma": tensor.ndim == 1,
        }.get(kind)
        # All but these kinds are looked up by noise level, all but the levels themselves by probe.
        placed = bool(probe) and probe.isprintable()
        if not good or (kind not in _ANY_LEVEL and not bins) or (key != "sigma" and not placed):
            raise ConceptMismatch(
                f"tensor {key!r} has shape {tuple(tensor.shape)}, which fits no concept of width {bank.width}"
            )


def _json(metadata: Mapping[str, str], key: str) -> Any:
    """One JSON value of the metadata.

    Raises:
        ConceptMismatch: a key stands twice, or it is nested deeper than MAX_DEPTH: to read, print and write it again
            takes a stack as deep.
    """
    value = json.loads(metadata[key], object_pairs_hook=_once)
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ConceptMismatch(f"{key}: JSON nested deeper than {MAX_DEPTH}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ConceptMismatch(f"the JSON key {reprlib.repr(twice)} stands twice, and readers differ in which they take")
    return entries


def _inside(value: object) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
