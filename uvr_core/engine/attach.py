"""The public call: put a regulator on a pipeline or its transformer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from ..adapter import Adapter
from ..concepts import ConceptBank, resolve
from ..errors import AdapterMismatch, ConceptMismatch, UVRError, did_you_mean
from ..intercept.runtime import uncompiled
from ..protocols import Detector, Policy
from .lookup import find_adapter, instrument, make_plan
from .plan import ConceptPlan
from .regulator import Regulator

_POLICY = "selective"


def attach(
    model: Any,
    adapter: str | Adapter | None = None,
    *,
    concepts: object = None,
    detector: str | Detector | None = None,
    policy: str | Policy = _POLICY,
    escalate: Sequence[str | Policy] = (),
    verify: bool = True,
    look: bool = True,
    threshold: float | Mapping[str, float] | None = None,
    max_false_positive: float | None = None,
    concept_folder: str | None = None,
) -> Regulator:
    """Regulate a diffusers pipeline or its transformer.

    Several concepts: each is located by itself, and the order in which they are listed is their rank. In every
    attention call a patch (core or ring) that an earlier concept's policy edits is not edited by a later one; a policy
    that does nothing in that call ("observe", "noise" after the start-up) claims nothing. Column scales ("uvr-released"
    in editing) multiply, and leave the patches that earlier concepts claimed as these made them.

    A bare transformer with concepts is driven inside `with reg.generation():`; see there. A concept whose bank has
    a verification is looked for once more at the end, behind the edits. An image in which it still stands is
    withheld: None stands in its place; where no image is left, UnsafeContent is raised.

    A concept whose bank has a look at the source is located there before the first step: the pipeline is called once
    more, for one step under a neutral text, unless these sources were looked at before. What it locates is restricted
    from the first step on, beside what the output shows later.

    Args:
        model: a pipeline with a `transformer`, a modular one included, or the transformer.
        adapter: registered name or Adapter; None: recognised by the transformer's class.
        concepts: one or a list of: path, ConceptBank, name in the concept folder, or a (concept, policy) pair.
            None: taps are verified, nothing changes; the report's posture is "observe".
        detector: registered name or object; None: the one each bank was calibrated with ("anchor" if it was not).
        policy: registered name or object for concepts that bring none of their own. The default attenuates only the
            text tokens that feed the located patches; "uvr" is the paper's restriction.
        escalate: policies in place of `policy`, in this order: an image in which a concept still stands at the end is
            drawn again from the same noise by the next, restricted from the first step on where it stood. Each costs
            another run of the batch. What stands after the last, or before one that withholds ("refuse"), is withheld.
        verify: False: nobody looks whether the concept still stands.
        look: False: nobody looks at the source before it is edited.
        threshold: tau, overriding every bank's calibration, or {concept name: tau}.
        max_false_positive: share of benign images in which any of them may be located; thresholds rise as it takes.
        concept_folder: where concept names are looked up; else UVR_CONCEPTS.

    Returns:
        A context manager whose `detach()` restores the model bitwise.

    Raises:
        AdapterNotFound, AdapterMismatch, ConceptMismatch, UnsupportedRuntime, PluginError: nothing was changed. A
            threshold for a concept that is not given is a ConceptMismatch.
    """
    transformer = uncompiled(_transformer_of(model))
    model = transformer if isinstance(model, nn.Module) else model
    adapter = find_adapter(transformer, adapter)
    banks = [(_looking(bank, look), special) for bank, special in resolve(concepts, concept_folder)]
    banks = [(_look_within(bank, _share(max_false_positive, banks)), special) for bank, special in banks]
    policies = _policies(policy, escalate)
    _check_unused(banks, detector, () if policies == (_POLICY,) else policies)
    thresholds = _thresholds(threshold, [bank for bank, _ in banks], max_false_positive)
    pairs = [[(bank, policy if special is None else special) for bank, special in banks] for policy in policies]
    plans = [
        [
            make_plan(bank, policy, detector, thresholds[bank.name], adapter, transformer, verify)
            for bank, policy in each
        ]
        for each in pairs
    ]
    return Regulator(model, transformer, adapter, plans[0], _escalation(plans, bare=model is transformer))


def _transformer_of(model: Any) -> nn.Module:
    """What is regulated: the model itself, or the transformer of a pipeline; a UNet, which is refused by its class.

    Raises AdapterMismatch: it has none, and is none."""
    transformer = model if isinstance(model, nn.Module) else getattr(model, "transformer", getattr(model, "unet", None))
    if not isinstance(transformer, nn.Module):
        empty = " whose transformer is not loaded (a modular pipeline: load_components)"
        raise AdapterMismatch(
            f"expected a pipeline with a transformer, or a transformer; got {type(model).__name__}"
            + (empty if hasattr(model, "transformer") else "")
        )
    return transformer


def _policies(policy: str | Policy, escalate: Sequence[str | Policy]) -> tuple[str | Policy, ...]:
    """The policies in the order in which they are tried. Raises UVRError: both are given."""
    if escalate and policy is not _POLICY:
        raise UVRError("policy and escalate: the first of escalate is the policy; give one of them")
    return tuple(escalate) or (policy,)


def _check_unused(banks: Sequence[tuple[Any, Any]], detector: object, policies: Sequence[object]) -> None:
    """Resolve names that no concept comes to use: nothing else would look at them, and a typo pass."""
    if detector is not None and not banks:
        instrument("detector", detector)
    if all(special is not None for _, special in banks):
        for policy in policies:
            instrument("policy", policy)


def _escalation(plans: Sequence[Sequence[ConceptPlan]], *, bare: bool) -> tuple[Sequence[ConceptPlan], ...]:
    """The plans after the first by which images are drawn again: up to one that withholds.

    Raises:
        UVRError: images cannot be drawn again. ConceptMismatch: nothing would tell which.
    """
    if len(plans) > 1 and bare:
        raise UVRError("escalate: a bare transformer's images cannot be drawn again; attach to the pipeline")
    if len(plans) > 1 and (blind := [each.name for each in plans[0] if each.verification is None]):
        raise ConceptMismatch(
            f"escalate: nothing tells whether {', '.join(map(repr, blind))} still stands; calibrate a verification "
            "(uvr_core.calibrate_verification), or name one policy"
        )
    return tuple(itertools.takewhile(lambda plan: not any(each.withholds for each in plan), plans[1:]))


def _looking(bank: ConceptBank, look: bool) -> ConceptBank:
    return bank if look or bank.source is None else attrs.evolve(bank, source=None)


def _share(budget: float | None, banks: Sequence[tuple[ConceptBank, Any]]) -> float | None:
    """Of a budget for all concepts together, what each way to locate one may take (Bonferroni)."""
    ways = sum(1 + (bank.source is not None) for bank, _ in banks)
    return None if budget is None else budget / max(ways, 1)


def _look_within(bank: ConceptBank, share: float | None) -> ConceptBank:
    """The bank with the threshold of its look at the source raised to that share of benign sources.

    Raises:
        ConceptMismatch: it does not know its benign scores.
    """
    if share is None or bank.source is None or not 0 < share < 1:
        return bank
    if (threshold := bank.source.threshold_at(share)) is None:
        raise ConceptMismatch(
            f"max_false_positive: the look at the source of concept {bank.name!r} does not know its benign scores; "
            "calibrate it again"
        )
    return attrs.evolve(bank, source=attrs.evolve(bank.source, threshold=threshold))


def _thresholds(
    threshold: float | Mapping[str, float] | None, banks: Sequence[ConceptBank], budget: float | None
) -> dict[str, float | None]:
    """{concept: its threshold or None}.

    Raises:
        ConceptMismatch: a concept is named twice, or a threshold is for a concept that is not in force.
    """
    names = [bank.name for bank in banks]
    if len(set(names)) < len(names):
        raise ConceptMismatch(f"the same concept is given twice: {', '.join(names)}")
    if not isinstance(threshold, Mapping):
        return _within(budget, dict.fromkeys(names, threshold), banks)
    for name in threshold:
        if name not in names:
            raise ConceptMismatch(
                f"threshold: no concept {name!r} is given{did_you_mean(name, names) if names else ''}"
            )
    return _within(budget, {name: threshold.get(name) for name in names}, banks)


def _within(
    budget: float | None, thresholds: dict[str, float | None], banks: Sequence[ConceptBank]
) -> dict[str, float | None]:
    """Thresholds that nobody gave, raised to keep a budget for all concepts together; see `_share`.

    Raises:
        UVRError: a budget outside 0..1. ConceptMismatch: a concept that does not know its benign scores.
    """
    if budget is None:
        return thresholds
    if not 0 < budget < 1:
        raise UVRError(f"max_false_positive: expected a share in 0..1, got {budget}")
    raised, share = dict(thresholds), _share(budget, [(bank, None) for bank in banks])
    assert share is not None
    for bank in banks:
        if raised[bank.name] is None:
            raised[bank.name] = None if bank.calibration is None else bank.calibration.threshold_at(share)
            if raised[bank.name] is None:
                raise ConceptMismatch(
                    f"max_false_positive: concept {bank.name!r} does not know its benign scores; calibrate it again"
                )
    return raised
