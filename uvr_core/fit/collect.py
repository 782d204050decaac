"""Collect what a concept looks like inside a model."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from ..concepts import ConceptBank
from ..engine.attach import attach
from ..engine.readings import Reader
from ..engine.regulator import Regulator
from ..errors import UVRError
from ..sampling import Sampling, nonblank
from .gather import Gathered
from .masks import Finder, Terms, finder_of
from .record import default_probes, read_along
from .regions import MaskSource


def collect(
    pipe: Any,
    concept: str,
    *,
    prompts: Sequence[str],
    masks: MaskSource | Any,
    benign_prompts: Sequence[str] = (),
    sources: Sequence[Any] | None = None,
    benign_sources: Sequence[Any] | None = None,
    words: Sequence[str] = (),
    without: Sequence[str] | None = None,
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
        masks: where the concept is; see uvr_core.fit.masks. A callable (images, (H, W)) -> (B, H, W) bool on the patch
            grid, run on the generated images and, when editing, on the sources, so that the bank can tell what the
            source shows from what the instruction brings; an array (len(prompts), H, W); "pairs": where a picture
            differs from that of the prompt without the concept; "words": where patches attend to the concept's own
            words. An image whose mask is empty is left out.
        words: what prompts call the concept, for "words" and "pairs"; none: its name.
        without: for "pairs", each prompt without the concept; None: the prompts less the words.
        benign_prompts: prompts without the concept; their patches join the "other" class of the contrast.
        sources, benign_sources: for an editing pipeline, the source image of each prompt (an instruction).
        probes: probe candidates; None: up to six of the adapter's, spread over the middle.
        generate: keyword arguments of the pipeline call (steps, size, guidance...).
        mask_source: a word on where masks come from, for the provenance.
        progress: called with the number of images finished.

    Returns:
        An uncalibrated ConceptBank. Prompts are drawn once to say where the concept is (not with an array; twice with
        "pairs") and once more to read its patches: memory grows with neither images nor steps.

    Raises:
        UVRError: no prompts; no image shows the concept; the pipeline draws another picture from the same seed.
        UnsupportedRuntime: "words" where the adapter does not tell where a word's tokens lie.
    """
    samplings = _samplings(prompts, benign_prompts, sources, benign_sources, seed, dict(generate or {}), batch_size)
    with attach(pipe, adapter) as reg:
        paths = tuple(probes) if probes else default_probes(reg, pipe.transformer)
        gathered = Gathered(reg.fingerprint.heads * reg.fingerprint.head_dim, max_anchors, seed)
        finder = finder_of(masks, Terms(concept, tuple(words), without), paths)
        _gather(reg, pipe, concept, samplings, paths, finder, gathered, progress)
        fingerprint = reg.fingerprint
    tensors = {"sigma": torch.tensor(gathered.sigmas)}
    for path in paths:
        tensors |= gathered.tensors(path)
    mask_source = mask_source or finder.name
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
    finder: Finder,
    gathered: Gathered,
    progress: Callable[[int], None] | None,
) -> None:
    """Say where the concept is, then draw both sets, reading what their patches are like.

    Raises:
        UVRError: no image shows the concept, or a picture is not the same when it is drawn again.
    """
    unsafe, benign = samplings
    seen = finder.find(reg, pipe, unsafe, progress)
    if not seen.masks.any():
        raise UVRError(
            f"collect {concept!r}: none of the {len(unsafe.prompts)} generated images shows the concept according to "
            "the mask source; check the prompts, and look at the images"
        )

    def showing(batch: slice) -> AbstractContextManager[Reader]:
        return gathered.showing(seen.masks[batch], None if seen.by_source is None else seen.by_source[batch])

    for drawn in read_along(reg, pipe, unsafe, paths, showing, progress):
        seen.check(drawn)
    for _ in read_along(reg, pipe, benign, paths, lambda batch: gathered.benign(), progress):
        pass


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
