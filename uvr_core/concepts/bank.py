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
    source/{probe}      (1, 2C) editing only: as direction, at noise level 1 under a neutral text, over a reference
                        token's output and the mean of its 3x3 neighbourhood's
    source_offset/{probe} (1,)  its offset
    sigma               (T,)    noise level of each bin, 1 = pure noise, decreasing
The metadata carries schema, name, model fingerprint, calibration, verification, source and provenance as JSON. Never
pickle.
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
from ..ops.tail import threshold_at
from ..validators import MAX_TEXT, count, finite, instance, is_finite, printable, share, window

SCHEMA = "uvr.concept/3"
READABLE = ("uvr.concept/1", "uvr.concept/2", SCHEMA)  # 1 has no verification, 1 and 2 no look at the source
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


def _floats(pair: Any) -> Any:
    """A list as JSON has it becomes a tuple, whole numbers become floats; the validator says what is wrong."""
    return tuple(float(n) if is_finite(n) else n for n in pair) if isinstance(pair, (list, tuple)) else pair


def _tail(calibration: Any, attribute: attrs.Attribute[Any], tail: Any) -> None:
    numbers = isinstance(tail, tuple) and all(is_finite(score) for score in tail)
    if not numbers or list(tail) != sorted(tail, reverse=True):
        raise ConceptMismatch(f"calibration.tail: expected finite scores in descending order, got {tail!r:.80}")


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
            uvr_core.ops.evidence.Evidence. 0: every step stands alone.
        max_false_positive: the budget asked for.
        measured: figures on the calibration sets (recall, false positives, counts, patch AUROC).
        tail: the largest scores of the benign images, descending, of `benign` images in all: how the threshold rises
            for a smaller budget (uvr_core.ops.tail). Empty: not known.

    Raises:
        ConceptMismatch: a number that is not finite or out of its range, a window that no noise level is in.
    """

    detector: str = attrs.field(validator=printable(ConceptMismatch))
    probe: str = attrs.field(validator=printable(ConceptMismatch))
    window: tuple[float, float] = attrs.field(converter=_floats, validator=window(ConceptMismatch))
    threshold: float = attrs.field(validator=finite(ConceptMismatch))
    grow: float | None = attrs.field(default=None, validator=attrs.validators.optional(finite(ConceptMismatch)))
    min_patches: int = attrs.field(default=1, validator=count(ConceptMismatch))
    max_false_positive: float = attrs.field(default=0.01, validator=finite(ConceptMismatch))
    measured: dict[str, Any] = attrs.field(factory=dict, validator=instance(dict, ConceptMismatch))
    memory: float = attrs.field(default=0.0, validator=share(ConceptMismatch))
    tail: tuple[float, ...] = attrs.field(default=(), converter=_floats, kw_only=True, validator=_tail)
    benign: int = attrs.field(default=0, kw_only=True, validator=instance(int, ConceptMismatch))

    def __attrs_post_init__(self) -> None:
        if len(self.tail) > self.benign:
            raise ConceptMismatch(
                f"calibration.tail: expected scores of at most {self.benign} benign images, got {len(self.tail)}"
            )

    def threshold_at(self, share: float) -> float | None:
        """The threshold that a share of benign images is expected to reach, at least the calibrated one; None: the
        benign images' tail is not known."""
        return max(self.threshold, threshold_at(self.tail, self.benign, share)) if self.tail else None


@attrs.frozen
class SourceLook(Calibration):
    """How a concept is located in the source before it is edited, chosen by `uvr_core.calibrate_source`.

    Attributes:
        text: the neutral instruction under which the model is shown the source.
    """

    text: str = attrs.field(kw_only=True, validator=printable(ConceptMismatch))


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
    """

    name: str = attrs.field(validator=printable(ConceptMismatch))
    fingerprint: Fingerprint = attrs.field(validator=_fingerprint)
    tensors: dict[str, torch.Tensor] = attrs.field(validator=_finite, repr=False)
    calibration: Calibration | None = None
    verification: Calibration | None = attrs.field(default=None, kw_only=True)
    source: SourceLook | None = attrs.field(default=None, kw_only=True)
    provenance: dict[str, Any] = attrs.field(factory=dict, repr=False, validator=instance(dict, ConceptMismatch))

    @property
    def probes(self) -> tuple[str, ...]:
        """Paths of the probe blocks that the bank has tensors for, but for those of the source."""
        keys = (key.partition("/") for key in self.tensors)
        return tuple(sorted({probe for kind, _, probe in keys if probe and not kind.startswith("source")}))

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
                )
            },
            "provenance": json.dumps(self.provenance, sort_keys=True),
        }
        # Not save_file: that makes a file that only its owner may read, whatever the umask.
        write_whole(path, save({key: value.contiguous() for key, value in self.tensors.items()}, metadata))
        return path
