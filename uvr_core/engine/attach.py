"""The public call: put a regulator on a pipeline or its transformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..adapter import Adapter
from ..concepts import resolve
from ..errors import AdapterMismatch, ConceptMismatch, did_you_mean
from ..intercept.runtime import refuse_compiled
from ..protocols import Detector, Policy
from .lookup import find_adapter, instrument, make_plan
from .regulator import Regulator

_POLICY = "selective"


def attach(
    model: Any,
    adapter: str | Adapter | None = None,
    *,
    concepts: object = None,
    detector: str | Detector | None = None,
    policy: str | Policy = _POLICY,
    threshold: float | Mapping[str, float] | None = None,
    concept_folder: str | None = None,
) -> Regulator:
    """Regulate a diffusers pipeline or its transformer.

    Several concepts: each is located by itself, and the order in which they are listed is their rank. In every
    attention call a patch (core or ring) that an earlier concept's policy edits is not edited by a later one; a policy
    that does nothing in that call ("observe", "noise" after the start-up) claims nothing. What a policy is told is not
    cut by this: "refuse" refuses for a concept that lies under another. Column scales ("uvr-released" in editing),
    which reach every query of an image, multiply, and leave the patches that earlier concepts claimed as these made
    them.

    A bare transformer with concepts is driven inside `with reg.generation():`. No pipeline says which forward, or
    which half of a batch, follows the prompt. All are regulated, but for forwards named "uncond" through
    `cache_context`: with guidance the unconditional prediction is restricted too, where the concept is located in it.
    To keep it stock, attach to the pipeline.

    Args:
        model: a pipeline with a `transformer`, or the transformer.
        adapter: registered name or Adapter; None: recognised by the transformer's class.
        concepts: one or a list of: path, ConceptBank, name in the concept folder, or a (concept, policy) pair.
            None: taps are verified, nothing changes; the report's posture is "observe".
        detector: registered name or object; None: the one each bank was calibrated with ("anchor" if it was not).
        policy: registered name or object for concepts that bring none of their own. The default attenuates only the
            text tokens that feed the located patches; "uvr" is the paper's restriction.
        threshold: tau, overriding every bank's calibration, or {concept name: tau}, overriding those.
        concept_folder: where concept names are looked up; else the UVR_CONCEPTS variable.

    Returns:
        A Regulator: a context manager whose `detach()` restores the model bitwise.

    Raises:
        AdapterNotFound, AdapterMismatch, ConceptMismatch, UnsupportedRuntime, PluginError: nothing was changed. A
            threshold for a concept that is not given is a ConceptMismatch.
    """
    transformer = getattr(model, "transformer", None) if not isinstance(model, nn.Module) else model
    if not isinstance(transformer, nn.Module):
        raise AdapterMismatch(
            f"expected a diffusers pipeline with a transformer, or a transformer; got {type(model).__name__}"
        )
    refuse_compiled(transformer.modules())
    adapter = find_adapter(transformer, adapter)
    banks = resolve(concepts, concept_folder)
    if detector is not None and not banks:  # nothing else would look at it, and a typo pass
        instrument("detector", detector)
    if policy is not _POLICY and all(special is not None for _, special in banks):
        instrument("policy", policy)
    thresholds = _thresholds(threshold, [bank.name for bank, _ in banks])
    plan = [
        make_plan(bank, policy if special is None else special, detector, thresholds[bank.name], adapter, transformer)
        for bank, special in banks
    ]
    return Regulator(model, transformer, adapter, plan)


def _thresholds(threshold: float | Mapping[str, float] | None, names: list[str]) -> dict[str, float | None]:
    """{concept: its threshold or None}.

    Raises:
        ConceptMismatch: a concept is named twice, or a threshold is for a concept that is not in force.
    """
    if len(set(names)) < len(names):
        raise ConceptMismatch(f"the same concept is given twice: {', '.join(names)}")
    if not isinstance(threshold, Mapping):
        return dict.fromkeys(names, threshold)
    for name in threshold:
        if name not in names:
            raise ConceptMismatch(
                f"threshold: no concept {name!r} is given{did_you_mean(name, names) if names else ''}"
            )
    return {name: threshold.get(name) for name in names}
