"""ConceptBank: what a concept looks like inside a model, in one safetensors file.

Tensors (C = heads * head_dim of the probe block, T = noise-level bins, A = anchors):
    anchors/{probe}     (A, C)  attention outputs inside the concept's region at the last step (paper, offline stage)
    direction/{probe}   (T, C)  whitened difference of means, unsafe patches minus others, at that noise level;
                        (T, 2C) if collected with reference tokens (see Detector.scores)
    offset/{probe}      (T,)    so that O . direction + offset has mean 0 and deviation 1 over other patches
    origin/{probe}      (T, 2C) editing only: whitened difference of means over a concept's patches, where the source
                        image shows it minus where the instruction brings it
    origin_offset/{probe} (T,)  so that 0 lies halfway between the two
    token/{probe}       (T, C)  attention outputs at the text tokens that feed the concept's region, mean over images
    sigma               (T,)    noise level of each bin, 1 = pure noise, decreasing
The metadata carries schema, name, model fingerprint, calibration and provenance as JSON. Never pickle.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import attrs
import torch

from . import plugins
from .errors import ConceptMismatch, did_you_mean
from .files import write_whole

SCHEMA = "uvr.concept/1"
TIME = "sigma"  # noise level in 0..1, 1 = pure noise, whatever the model's own convention
# What a file may make a reader allocate, at most. A bank of every block of a published model is some 200 MB.
MAX_HEADER = 16 * 2**20
MAX_FILE = 2**30
MAX_TENSORS = 4096
MAX_DEPTH = 64  # of JSON in the metadata
MAX_NAME = 200  # characters
MAX_INT = 2**31
MAX_QUOTED = 500  # characters of a file's fault in a message
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@attrs.frozen
class Fingerprint:
    """Which models a bank fits: class, number of joint attention blocks, heads and head size.

    Weights are not part of it: anchors are reported to move between checkpoints of one architecture.
    """

    model: str
    blocks: int
    heads: int
    head_dim: int

    def check(self, other: Fingerprint, where: str) -> None:
        """Raise ConceptMismatch naming the fields that differ from the attached model's."""
        wrong = [
            f"{field.name} {getattr(self, field.name)!r} (model has {getattr(other, field.name)!r})"
            for field in attrs.fields(Fingerprint)
            if getattr(self, field.name) != getattr(other, field.name)
        ]
        if wrong:
            raise ConceptMismatch(
                f"{where}: made for another model: {', '.join(wrong)}; collect the concept again on this model"
            )


@attrs.frozen
class Calibration:
    """How the bank is to be used, chosen by `uvr_core.calibrate`.

    Attributes:
        detector: registered name whose scores `threshold` refers to.
        probe: path of the probe block.
        window: (high, low) noise levels between which patches are located.
        threshold: tau. A patch with score >= tau is a hit.
        grow: once an image is located, patches >= grow make the mask: with grow < tau those connected to a hit, with
            grow > tau those alone, if they are min_patches (None: tau).
        min_patches: hits an image needs to count as located.
        memory: share of the earlier steps' scores that is added to a step's before it is compared, 0..1; see
            uvr_core.masks.Evidence. 0: every step stands alone.
        max_false_positive: the budget asked for.
        measured: figures on the calibration sets (recall, false positives, counts, patch AUROC).
    """

    detector: str
    probe: str
    window: tuple[float, float]
    threshold: float
    grow: float | None = None
    min_patches: int = 1
    max_false_positive: float = 0.01
    measured: dict[str, Any] = attrs.field(factory=dict)
    memory: float = 0.0


def _finite(instance: object, attribute: attrs.Attribute[Any], tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ConceptMismatch(f"tensor {name!r}: expected one of {', '.join(map(str, DTYPES))}, got {tensor.dtype}")
        if not bool(torch.isfinite(tensor.float()).all()):  # detectors compute in float32
            raise ConceptMismatch(
                f"tensor {name!r} holds NaN or Inf, or numbers that float32 cannot; the file is damaged or was "
                "collected from a broken run"
            )


def _printable(instance: object, attribute: attrs.Attribute[Any], name: str) -> None:
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_NAME:
        raise ConceptMismatch(f"name: expected 1 to {MAX_NAME} printable characters, got {reprlib.repr(name)}")


@attrs.frozen(eq=False)
class ConceptBank:
    """A concept as a model knows it; see the module's docstring for the tensors."""

    name: str = attrs.field(validator=_printable)
    fingerprint: Fingerprint
    tensors: dict[str, torch.Tensor] = attrs.field(validator=_finite, repr=False)
    calibration: Calibration | None = None
    provenance: dict[str, Any] = attrs.field(factory=dict, repr=False)

    @property
    def probes(self) -> tuple[str, ...]:
        """Paths of the probe blocks that the bank has tensors for."""
        return tuple(sorted({key.split("/", 1)[1] for key in self.tensors if "/" in key}))

    @property
    def width(self) -> int:
        """C = heads * head_dim."""
        return self.fingerprint.heads * self.fingerprint.head_dim

    def tensor(self, kind: str, probe: str) -> torch.Tensor:
        """One tensor, e.g. tensor("anchors", path). Raises ConceptMismatch if the bank lacks it."""
        try:
            return self.tensors[f"{kind}/{probe}"]
        except KeyError:
            raise ConceptMismatch(
                f"concept {self.name!r} has no {kind!r} for probe {probe!r}; it has: {', '.join(sorted(self.tensors))}"
            ) from None

    def without_sources(self) -> ConceptMismatch:
        """The error of a direction that is 2C wide where there are no reference tokens."""
        return ConceptMismatch(
            f"concept {self.name!r} was collected with source images and this call has none; collect it for "
            "synthesis, or pass the image to be edited"
        )

    def bin_at(self, sigma: float) -> int:
        """Index of the noise-level bin nearest to sigma. Raises ConceptMismatch if the bank has no bins."""
        if "sigma" not in self.tensors:
            raise ConceptMismatch(
                f"concept {self.name!r} has no noise levels (sigma); it has: {', '.join(sorted(self.tensors))}"
            )
        return int((self.tensors["sigma"] - sigma).abs().argmin())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the bank; a reader sees the old file or the whole new one.

        Raises:
            OSError: the folder is missing or not writable; nothing is written.
        """
        from safetensors.torch import save

        path = Path(path)
        metadata = {
            "schema": SCHEMA, "name": self.name, "time": TIME,
            "fingerprint": json.dumps(attrs.asdict(self.fingerprint), sort_keys=True),
            "calibration": json.dumps(attrs.asdict(self.calibration)) if self.calibration else "null",
            "provenance": json.dumps(self.provenance, sort_keys=True),
        }  # fmt: skip
        # Not save_file: that makes a file that only its owner may read, whatever the umask.
        write_whole(path, save({key: value.contiguous() for key, value in self.tensors.items()}, metadata))
        return path


def _check_header(path: Path) -> None:
    """Bound what a reader may allocate: the header's claimed length must fit the file, and both a fixed limit."""
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


def load_concepts(path: str | os.PathLike[str]) -> ConceptBank:
    """Read a concept file, whoever made it. The bank stays as it is when the file changes afterwards.

    Reads at most MAX_FILE bytes, and nothing before the header's claims are found to fit the file.

    Raises:
        ConceptMismatch: missing, unreadable, truncated, too large, of another schema, NaN or Inf in a tensor, shapes
            that disagree, metadata that the engine could not use.
    """
    from safetensors import SafetensorError

    path = Path(path)
    if not _is_file(path):
        raise ConceptMismatch(f"{_plain(str(path))}: no such concept file")
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
    raise ConceptMismatch(f"{_plain(str(path))}: {_plain(fault)}") from cause


def _plain(text: str) -> str:
    """Text that may quote a stranger's file, in one line and with nothing that moves a terminal's cursor."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _read(path: Path) -> ConceptBank:
    from safetensors import safe_open

    _check_header(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("schema") != SCHEMA:
            raise ConceptMismatch(f"expected schema {SCHEMA!r}, got {metadata.get('schema')!r}")
        if len(keys := file.keys()) > MAX_TENSORS:
            raise ConceptMismatch(f"{len(keys)} tensors; no concept has more than {MAX_TENSORS}")
        # Copies: what safetensors returns shows the file itself, and kills the process once that is cut short.
        tensors = {key: file.get_tensor(key).clone() for key in keys}
    return _parse(metadata, tensors)


def _parse(metadata: Mapping[str, str], tensors: dict[str, torch.Tensor]) -> ConceptBank:
    if metadata.get("time") != TIME:
        raise ConceptMismatch(f"expected time convention {TIME!r}, got {metadata.get('time')!r}")
    fingerprint = Fingerprint(**_parsed(metadata, "fingerprint"))
    _text("fingerprint.model", fingerprint.model)
    for field in ("blocks", "heads", "head_dim"):
        _count(f"fingerprint.{field}", getattr(fingerprint, field))
    raw, provenance = _parsed(metadata, "calibration"), _parsed(metadata, "provenance")
    _typed("provenance", provenance, dict)
    calibration = None if raw is None else _calibration(raw)
    bank = ConceptBank(metadata["name"], fingerprint, tensors, calibration, provenance)
    bins = len(tensors["sigma"]) if "sigma" in tensors else 0
    for key, tensor in tensors.items():
        kind, _, probe = key.partition("/")
        good = {
            "anchors": tensor.ndim == 2 and len(tensor) > 0 and tensor.shape[-1] == bank.width,
            "direction": tuple(tensor.shape) in ((bins, bank.width), (bins, 2 * bank.width)),
            "offset": tuple(tensor.shape) == (bins,),
            "origin": tuple(tensor.shape) == (bins, 2 * bank.width),
            "origin_offset": tuple(tensor.shape) == (bins,),
            "token": tuple(tensor.shape) == (bins, bank.width),
            "sigma": tensor.ndim == 1,
        }.get(kind)
        # All but the anchors are looked up by noise level, all but the levels themselves by probe.
        if not good or (kind != "anchors" and not bins) or (key != "sigma" and not (probe and probe.isprintable())):
            raise ConceptMismatch(
                f"tensor {key!r} has shape {tuple(tensor.shape)}, which fits no concept of width {bank.width}"
            )
    return bank


def _parsed(metadata: Mapping[str, str], key: str) -> Any:
    """One JSON value of the metadata.

    Raises:
        ConceptMismatch: nested deeper than MAX_DEPTH: to read, print and write it again takes a stack as deep.
    """
    found = json.loads(metadata[key])
    level = [found]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ConceptMismatch(f"{key}: JSON nested deeper than {MAX_DEPTH}")
    return found


def _inside(value: object) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _typed(where: str, value: object, *kinds: type) -> None:
    """Raise ConceptMismatch unless value is of one of the kinds and, if a number, finite (bool is no number)."""
    finite = not isinstance(value, (int, float)) or isfinite(value)
    if not isinstance(value, kinds) or isinstance(value, bool) or not finite:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ConceptMismatch(f"{where}: expected {expected}, got {reprlib.repr(value)}")


def _text(where: str, value: object) -> None:
    """Raise ConceptMismatch unless value is text that may be printed on a terminal."""
    _typed(where, value, str)
    if not str(value).isprintable():
        raise ConceptMismatch(f"{where}: expected printable text, got {reprlib.repr(value)}")


def _count(where: str, value: object) -> None:
    """Raise ConceptMismatch unless value is a whole number from 1 to MAX_INT."""
    _typed(where, value, int)
    if not 1 <= value <= MAX_INT:  # type: ignore[operator]
        raise ConceptMismatch(f"{where}: expected at least 1 and at most {MAX_INT}, got {value}")


def _calibration(raw: object) -> Calibration:
    """A Calibration from its JSON, every field of the type it says."""
    _typed("calibration", raw, dict)
    found = Calibration(**raw)  # type: ignore[arg-type]
    _text("calibration.detector", found.detector)
    _text("calibration.probe", found.probe)
    _typed("calibration.window", found.window, list)
    if len(found.window) != 2:
        raise ConceptMismatch(f"calibration.window: expected (high, low), got {reprlib.repr(found.window)}")
    for name in ("threshold", "max_false_positive"):
        _typed(f"calibration.{name}", getattr(found, name), int, float)
    for number in found.window:
        _typed("calibration.window", number, int, float)
    if found.grow is not None:
        _typed("calibration.grow", found.grow, int, float)
    _count("calibration.min_patches", found.min_patches)
    _typed("calibration.memory", found.memory, int, float)
    if not 0 <= found.memory <= 1:
        raise ConceptMismatch(f"calibration.memory: expected 0..1, got {found.memory}")
    _typed("calibration.measured", found.measured, dict)
    high, low = map(float, found.window)
    if high < low:
        raise ConceptMismatch(
            f"calibration.window: expected (high, low), got {found.window!r}, which no noise level is in"
        )
    return attrs.evolve(found, window=(high, low))


def resolve(concepts: object, folder: str | os.PathLike[str] | None = None) -> list[tuple[ConceptBank, object | None]]:
    """Normalise the `concepts` argument of `attach` to (bank, its own policy or None) pairs.

    A string that is no file and has no folder in it is a name: in `folder`, else in the folder that the UVR_CONCEPTS
    variable names, else among the concepts that installed packages ship. A name never leads out of the folder; a
    symbolic link that someone put there may.

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
    found: list[tuple[ConceptBank, object | None]] = []
    for entry in concepts:
        item, policy = entry if isinstance(entry, tuple) else (entry, None)
        if not isinstance(item, ConceptBank):
            item = load_concepts(_find(item, folder))
        found.append((item, policy))
    return found


def _is_file(path: Path) -> bool:
    """Path.is_file, but False where the system refuses the name itself: too long, or in a folder closed to us."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _find(item: object, folder: str | os.PathLike[str] | None) -> Path:
    if not isinstance(item, (str, os.PathLike)):
        raise ConceptMismatch(f"concepts: expected a path, a name or a ConceptBank, got {item!r}")
    path = Path(item)
    if _is_file(path) or path.suffix == ".safetensors" or len(path.parts) > 1:
        return path
    root = folder or os.environ.get("UVR_CONCEPTS")
    if root and path.name and _is_file(own := Path(root) / f"{path.name}.safetensors"):
        return own
    shipped = plugins.registry().names("concept")
    if path.name in shipped:
        return Path(str(shipped[path.name][0]))
    there = {p.stem for p in Path(root).glob("*.safetensors")} if root else set()
    hint = did_you_mean(path.name, there | set(shipped))
    raise ConceptMismatch(
        f"concept {path.name!r}: no such file, and no concept of that name{hint} Pass a path, or name your folder in "
        "UVR_CONCEPTS"
    )
