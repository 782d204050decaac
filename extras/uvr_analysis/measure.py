"""Draw without regulation, and measure the flows of every block and step on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
import torch

from uvr_core import ConceptBank, Detector, Regulator, attach, plugins
from uvr_core.errors import UVRError
from uvr_core.fit.regions import MaskSource, mask_of
from uvr_core.ops.evidence import Evidence, Scores
from uvr_core.sampling import Sampling, nonblank

from .flows import Flows
from .recorder import Recorder


def measure_flows(
    pipe: Any,
    prompts: Sequence[str],
    sources: Sequence[Any] | None = None,
    *,
    masks: MaskSource | Any = None,
    bank: ConceptBank | None = None,
    detector: Any = None,
    adapter: Any = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
    generate: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Flows:
    """Generate, unregulated, and measure the flows of UVR, arXiv 2606.06875, eq. flow, at every block and step.

    One fused call more per attention call, with one-hot roles in the place of V; the attention matrix is never held.

    Args:
        pipe: a diffusers pipeline.
        prompts: one per image.
        sources: for an editing pipeline, the source image of each prompt (an instruction).
        masks: where the concept is. A callable (images, (H, W)) -> (B, H, W) bool is asked about the generated images:
            then the flows into located patches are told apart, and those out of them are not. An array (I, H, W) bool,
            known before, tells both apart.
        bank: a concept to localise; its detector's scores at every step and probe of the bank are kept.
        detector: registered name or object; None: the bank's own ("contrast" if it is not calibrated).
        seed: image i is drawn with seed + i; or the seeds themselves.
        generate: keyword arguments of the pipeline call (steps, size, guidance...).
        progress: called with the number of images finished.

    Returns:
        Flows. Host memory holds, with callable masks, one batch's masses of every patch at every step and block
        (3 float32 each), and with a bank one batch's features at its probes.

    Raises:
        UVRError: no prompts, or prompts, sources, masks, seeds and images do not match in number or size.
        ConceptMismatch: the bank was made for another model.
    """
    prompts = nonblank("prompts", prompts)
    seeds = list(range(seed, seed + len(prompts))) if isinstance(seed, int) else list(seed)
    sampling = Sampling(prompts, seeds, {"image": sources}, generate or {}, batch_size)
    if masks is not None and not callable(masks) and len(masks) != len(prompts):
        raise UVRError(f"masks: expected one per prompt, got {len(masks)} for {len(prompts)} prompts")
    scoring = None if bank is None else (bank, _detector(detector, bank))
    with attach(pipe, adapter) as reg:
        if bank is not None:
            bank.fingerprint.check(reg.fingerprint, f"concept {bank.name!r}")
        return _joined(list(_batches(reg, pipe, sampling, masks, scoring, progress)))


def _batches(
    reg: Regulator,
    pipe: Any,
    sampling: Sampling,
    masks: MaskSource | Any,
    scoring: tuple[ConceptBank, Detector] | None,
    progress: Callable[[int], None] | None,
) -> Iterator[Flows]:
    """The flows of every batch."""
    probes = scoring[0].probes if scoring is not None else ()
    recorder: Recorder

    @contextmanager
    def reading(batch: slice) -> Iterator[Regulator]:
        nonlocal recorder
        known = None if masks is None or callable(masks) else np.asarray(masks[batch], dtype=bool)
        recorder = Recorder(known, callable(masks), probes)
        with torch.no_grad(), reg.recording(recorder):
            yield reg

    for drawn in sampling.draw(pipe, reading, progress):
        assert drawn.grid is not None
        shown = None if masks is None else mask_of(masks, drawn.images, drawn.grid, drawn.first)
        share, counts = recorder.result(reg.taps, shown)
        sigmas = [recorder.sigmas[step] for step in sorted(recorder.sigmas)]
        scores = {} if scoring is None else _scores(*scoring, recorder.features, sigmas)
        yield Flows(share, counts, reg.taps, sigmas, drawn.grid, drawn.images, shown, scores, drawn.seconds)


def _detector(name_or_object: Any, bank: ConceptBank) -> Detector:
    default = bank.calibration.detector if bank.calibration else "contrast"
    return plugins.registry().make("detector", name_or_object or default).object  # type: ignore[no-any-return]


def _scores(
    bank: ConceptBank, detector: Detector, features: dict[tuple[str, int], torch.Tensor], sigmas: Sequence[float]
) -> dict[str, Scores]:
    """{probe: (B, T, H * W)}, gathered over steps where the bank's calibration has a memory for this detector."""
    calibration = bank.calibration
    same = calibration is not None and calibration.detector == getattr(detector, "name", "")
    memory = calibration.memory if calibration is not None and same else 0.0
    gathered = {}
    for path in bank.probes:
        steps = [detector.scores(features[path, i].float(), s, bank, path).numpy() for i, s in enumerate(sigmas)]
        gathered[path] = Evidence.over(np.stack(steps, 1), memory)
    return gathered


def _joined(parts: Sequence[Flows]) -> Flows:
    """One set of images from batches of it."""
    first = parts[0]
    for part in parts[1:]:
        if (part.grid, len(part.sigmas)) != (first.grid, len(first.sigmas)):
            raise UVRError(
                f"batches differ: {first.grid} patches in {len(first.sigmas)} steps, then {part.grid} in "
                f"{len(part.sigmas)}; give pictures of one size"
            )
    return attrs.evolve(
        first,
        share=np.concatenate([part.share for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
        images=[image for part in parts for image in part.images],
        masks=None if first.masks is None else np.concatenate([part.masks for part in parts if part.masks is not None]),
        scores={probe: np.concatenate([part.scores[probe] for part in parts]) for probe in first.scores},
        seconds=sum(part.seconds for part in parts),
    )
