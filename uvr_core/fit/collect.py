"""Collect what a concept looks like inside a model."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..concepts import ConceptBank
from ..engine.attach import attach
from ..engine.regulator import Regulator
from ..errors import UVRError
from ..sampling import Sampling, nonblank
from .gather import Gathered
from .record import default_probes, recorded
from .regions import MaskSource, mask_of, shown_by


def collect(
    pipe: Any,
    concept: str,
    *,
    prompts: Sequence[str],
    masks: MaskSource | Any,
    benign_prompts: Sequence[str] = (),
    sources: Sequence[Any] | None = None,
    benign_sources: Sequence[Any] | None = None,
    adapter: Any = None,
    probes: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 8,
    max_anchors: int = 256,
    generate: dict[str, Any] | None = None,
    mask_source: str = "",
    progress: Callable[[int], None] | None = None,
) -> ConceptBank:
    """Offline stage: generate the concept without regulation and keep what it looks like inside the model.

    Args:
        pipe: a diffusers pipeline.
        concept: the bank's name.
        prompts: prompts that show the concept. Image i is drawn with seed + i.
        masks: where the concept is. Either a callable (images, (H, W)) -> (B, H, W) bool on the patch grid, run
            on the generated images (a detector or segmenter), or an array (len(prompts), H, W) made by a user.
            An image whose mask is empty is left out. For an editing pipeline a callable is also run on the source
            images, so that the bank can tell a concept that the source shows from one that the instruction brings.
        benign_prompts: prompts without the concept; their patches join the "other" class of the contrast.
        sources, benign_sources: for an editing pipeline, the source image of each prompt (an instruction).
        probes: probe candidates; None: up to six of the adapter's, spread over the middle.
        generate: keyword arguments of the pipeline call (steps, size, guidance...).
        mask_source: a word on where masks come from, for the provenance.
        progress: called with the number of images finished.

    Returns:
        An uncalibrated ConceptBank. See uvr_core.concepts.bank for its tensors. Host memory holds one batch's features
        at every probe and step, with its text rows and the attention from patches to text.

    Raises:
        UVRError: no prompts; no image shows the concept.
    """
    samplings = _samplings(prompts, benign_prompts, sources, benign_sources, seed, dict(generate or {}), batch_size)
    with attach(pipe, adapter) as reg:
        paths = tuple(probes) if probes else default_probes(reg, pipe.transformer)
        gathered, fingerprint = _gather(reg, pipe, concept, samplings, paths, masks, progress), reg.fingerprint
    tensors = {"sigma": torch.tensor(gathered.sigmas)}
    for path in paths:
        tensors |= gathered.tensors(path, max_anchors, seed)
    mask_source = mask_source or getattr(masks, "__qualname__", type(masks).__name__)
    return ConceptBank(concept, fingerprint, tensors, None, _provenance(samplings, gathered, seed, mask_source))


def _samplings(
    prompts: Sequence[str],
    benign_prompts: Sequence[str],
    sources: Sequence[Any] | None,
    benign_sources: Sequence[Any] | None,
    seed: int,
    call: dict[str, Any],
    batch_size: int,
) -> tuple[Sampling, Sampling]:
    """The images that show the concept, and the benign ones, whose seeds follow."""
    shown, benign = nonblank("prompts", prompts), [prompt for prompt in benign_prompts if prompt.strip()]
    if (sources is None) != (benign_sources is None) and benign:
        raise UVRError("source images: give them for both sets of prompts or for neither")
    first = seed + len(shown)
    return (
        Sampling(shown, range(seed, first), {"image": sources}, call, batch_size),
        Sampling(benign, range(first, first + len(benign)), {"image": benign_sources}, call, batch_size),
    )


def _gather(
    reg: Regulator,
    pipe: Any,
    concept: str,
    samplings: tuple[Sampling, Sampling],
    paths: Sequence[str],
    masks: MaskSource | Any,
    progress: Callable[[int], None] | None,
) -> Gathered:
    """Draw both sets and gather what their patches are like."""
    gathered = Gathered(reg.fingerprint.heads * reg.fingerprint.head_dim)
    sources = samplings[0].per_image.get("image")
    for batch in recorded(reg, pipe, samplings[0], paths, progress, text=True):
        inside = mask_of(masks, batch.images, batch.grid, batch.first)
        gathered.add(batch, inside, shown_by(masks, sources, batch.first, len(batch.images), batch.grid))
    if not gathered.images:
        raise UVRError(
            f"collect {concept!r}: none of the {gathered.drawn} generated images shows the concept according to the "
            "mask source; check the prompts, and look at the images"
        )
    for batch in recorded(reg, pipe, samplings[1], paths, progress):
        gathered.add_benign(batch)
    return gathered


def _provenance(
    samplings: tuple[Sampling, Sampling], gathered: Gathered, seed: int, mask_source: str
) -> dict[str, Any]:
    unsafe, benign = samplings
    return {
        "prompts": len(unsafe.prompts),
        "images_with_concept": gathered.images,
        "benign_prompts": len(benign.prompts),
        "seed": seed,
        "mask_source": mask_source,
        "generate": {k: v for k, v in unsafe.call.items() if isinstance(v, (int, float, str, bool))},
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")},
    }
