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
    text/{probe}        (1, C)  over the values of text tokens: those that carry the concept against all others
    text_offset/{probe} (1,)    so that the score is the log odds
    source/{probe}      (1, 2C) editing only: as direction, at noise level 1 under a neutral text, over a reference
                        token's output and the mean of its 3x3 neighbourhood's
    source_offset/{probe} (1,)  its offset
    sigma               (T,)    noise level of each bin, 1 = pure noise, decreasing
The metadata carries schema, name, model fingerprint, calibration, verification, source, text and provenance as JSON.
Never pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from ..errors import ConceptMismatch
from ..files import write_whole
from ..validators import MAX_TEXT, count, instance, printable
from .calibration import Calibration, SourceLook, TextCarriers

SCHEMA = "uvr.concept/4"
# What each knows beside the calibration: a verification from 2 on, a look at the source from 3 on, text from 4 on.
READABLE = ("uvr.concept/1", "uvr.concept/2", "uvr.concept/3", SCHEMA)
TIME = "sigma"  # noise level in 0..1, 1 = pure noise, whatever the model's own convention
MAX_NAME = MAX_TEXT  # characters
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


def _finite(instance: object, attribute: attrs.Attribute[Any], tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ConceptMismatch(f"tensor {name!r}: expected one of {', '.join(map(str, DTYPES))}, got {tensor.dtype}")
        if not bool(torch.isfinite(tensor.float()).all()):  # detectors compute in float32
            raise ConceptMismatch(
                f"tensor {name!r} holds NaN or Inf, or numbers that float32 cannot; the file is damaged or was "
                "collected from a broken run"
            )


def _fingerprint(bank: object, attribute: attrs.Attribute[Any], fingerprint: Fingerprint) -> None:
    """A model's fingerprint may say 0 of what the model does not tell; a bank's may not."""
    for field in attrs.fields(Fingerprint):
        check = printable(ConceptMismatch) if field.name == "model" else count(ConceptMismatch)
        check(fingerprint, field, getattr(fingerprint, field.name))


@attrs.frozen(eq=False)
class ConceptBank:
    """A concept as a model knows it; see the module's docstring for the tensors.

    Attributes:
        calibration: how it is located.
        verification: how it is told, from the attention output behind the edits in late steps, whether the concept
            still stands at the end (grow and memory are of no use there). None: it is not verified.
        source: how it is located in the source before it is edited. None: nobody looks there.
        text: how it is told which of the prompt's tokens carry it. None: it is not told.
    """

    name: str = attrs.field(validator=printable(ConceptMismatch))
    fingerprint: Fingerprint = attrs.field(validator=_fingerprint)
    tensors: dict[str, torch.Tensor] = attrs.field(validator=_finite, repr=False)
    calibration: Calibration | None = None
    verification: Calibration | None = attrs.field(default=None, kw_only=True)
    source: SourceLook | None = attrs.field(default=None, kw_only=True)
    text: TextCarriers | None = attrs.field(default=None, kw_only=True)
    provenance: dict[str, Any] = attrs.field(factory=dict, repr=False, validator=instance(dict, ConceptMismatch))

    @property
    def probes(self) -> tuple[str, ...]:
        """Paths of the probe blocks that the bank has tensors for, but for those of the source and of the text."""
        keys = (key.partition("/") for key in self.tensors)
        return tuple(sorted({probe for kind, _, probe in keys if probe and not kind.startswith(("source", "text"))}))

    @property
    def width(self) -> int:
        """C = heads * head_dim."""
        return self.fingerprint.heads * self.fingerprint.head_dim

    @property
    def digest(self) -> str:
        """sha256 of the tensors' names and float32 values, hexadecimal: whatever the file's layout and metadata."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().float().numpy().tobytes())
        return digest.hexdigest()

    def tensor(self, kind: str, probe: str) -> torch.Tensor:
        """One tensor, e.g. tensor("anchors", path). Raises ConceptMismatch if the bank lacks it."""
        try:
            return self.tensors[f"{kind}/{probe}"]
        except KeyError:
            raise ConceptMismatch(
                f"concept {self.name!r} has no {kind!r} for probe {probe!r}; it has: {', '.join(sorted(self.tensors))}"
            ) from None

    def at_source(self) -> ConceptBank:
        """What the look at the source compares, as a bank of one noise level and one probe.

        Raises:
            ConceptMismatch: the bank has no such tensors.
        """
        assert self.source is not None
        probe = self.source.probe
        tensors = {kind: self.tensor(f"source{kind}", probe) for kind in ("", "_offset")}
        compared = {f"direction/{probe}": tensors[""], f"offset/{probe}": tensors["_offset"]}
        return ConceptBank(self.name, self.fingerprint, {"sigma": torch.ones(1), **compared}, self.source)

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
            "schema": SCHEMA,
            "name": self.name,
            "time": TIME,
            "fingerprint": json.dumps(attrs.asdict(self.fingerprint), sort_keys=True),
            **{
                use: "null" if how is None else json.dumps(attrs.asdict(how))
                for use, how in (
                    ("calibration", self.calibration),
                    ("verification", self.verification),
                    ("source", self.source),
                    ("text", self.text),
                )
            },
            "provenance": json.dumps(self.provenance, sort_keys=True),
        }
        # Not save_file: that makes a file that only its owner may read, whatever the umask.
        write_whole(path, save({key: value.contiguous() for key, value in self.tensors.items()}, metadata))
        return path
