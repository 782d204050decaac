"""Concept banks renamed, and several of one concept made into one."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from ..errors import ConceptMismatch
from .bank import ConceptBank

MEANS = ("direction", "offset", "origin", "origin_offset", "token")
SUMS = ("prompts", "images_with_concept", "benign_prompts")


def rename(bank: ConceptBank, name: str) -> ConceptBank:
    """The same bank under another name: calibration, verification and what was measured stay, since none depends on it.

    Provenance notes the name before in `renamed_from`. Raises ConceptMismatch: no printable name.
    """
    before = bank.provenance.get("renamed_from")
    before = before if isinstance(before, list) else []
    return attrs.evolve(bank, name=name, provenance={**bank.provenance, "renamed_from": [*before, bank.name]})


def merge(banks: Sequence[ConceptBank], name: str) -> ConceptBank:
    """One bank of several that were collected on one model with the same noise levels: other prompts, styles, seeds.

    Anchors are put together. Directions and offsets, and the mean features at text tokens, are means weighted by the
    pictures that each bank saw the concept in, so that a patch's score becomes the weighted mean of its scores by each.
    That has mean 0 over other patches and a deviation of at most 1, not 1: **calibration, verification, text and the
    look at the source are dropped, and so is what was measured**; calibrate anew. It is for parts of one concept. Of
    two things that look different one mean direction may fit neither: `attach(concepts=[a, b])` keeps them apart.

    Raises:
        ConceptMismatch: fewer than two, other fingerprints or noise levels, no block in common, a bank collected with
            source images beside one without.
    """
    if len(banks) < 2:
        raise ConceptMismatch(f"merging needs two concept files or more, got {len(banks)}")
    first = banks[0]
    for bank in banks[1:]:
        bank.fingerprint.check(first.fingerprint, f"concept {bank.name!r} beside {first.name!r}")
        _check_levels(first, bank)
    probes = sorted(set.intersection(*(set(bank.probes) for bank in banks)))
    if not probes:
        raise ConceptMismatch(
            f"{', '.join(repr(bank.name) for bank in banks)} have no block in common; merge what `collect` gave, which "
            "has all blocks, and calibrate then"
        )
    tensors = {"sigma": first.tensors["sigma"]} if "sigma" in first.tensors else {}
    weights = _weights(banks)
    for probe in probes:
        parts = [bank.tensors.get(f"anchors/{probe}") for bank in banks]
        if anchors := [part for part in parts if part is not None]:
            tensors[f"anchors/{probe}"] = torch.cat([part.float() for part in anchors])
        for key in (f"{kind}/{probe}" for kind in MEANS):
            if all(key in bank.tensors for bank in banks):
                tensors[key] = _mean(key, [bank.tensors[key] for bank in banks], weights)
    return ConceptBank(name, first.fingerprint, tensors, None, _provenance(banks))


def _check_levels(one: ConceptBank, other: ConceptBank) -> None:
    theirs, ours = (bank.tensors.get("sigma", torch.empty(0)).float() for bank in (one, other))
    if theirs.shape != ours.shape or not torch.allclose(theirs, ours, atol=1e-4):
        raise ConceptMismatch(
            f"concept {other.name!r} beside {one.name!r}: other noise levels ({len(ours)} and {len(theirs)}); "
            "collect both with the same scheduler and steps"
        )


def _weights(banks: Sequence[ConceptBank]) -> torch.Tensor:
    """Shares that sum to 1: of pictures with the concept, or equal ones where a bank does not say."""
    images = [bank.provenance.get("images_with_concept") for bank in banks]
    counts = [count for count in images if isinstance(count, int) and count > 0]
    weights = torch.tensor(counts if len(counts) == len(banks) else [1] * len(banks), dtype=torch.float64)
    return weights / weights.sum()


def _mean(key: str, parts: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    if len({part.shape for part in parts}) > 1:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ConceptMismatch(
            f"tensor {key!r} has shapes {shapes}: some were collected with source images, some without"
        )
    return torch.einsum("b,b...->...", weights, torch.stack([part.double() for part in parts])).float()


def _provenance(banks: Sequence[ConceptBank]) -> dict[str, object]:
    provenance: dict[str, object] = {
        "merged_from": [f"{bank.name} (tensors sha256 {bank.digest})" for bank in banks],
        "parts": [bank.provenance for bank in banks],
    }
    for name in SUMS:
        counts = [bank.provenance.get(name) for bank in banks]
        if all(isinstance(count, int) for count in counts):
            provenance[name] = sum(count for count in counts if isinstance(count, int))
    for name in ("model", "generate", "mask_source"):
        values = [bank.provenance.get(name) for bank in banks]
        if values[0] is not None and all(value == values[0] for value in values):
            provenance[name] = values[0]
    return provenance
