"""From names and objects to what a run needs: the adapter, and a plan per concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from .. import plugins
from ..adapter import Adapter
from ..concepts import Calibration, ConceptBank, Fingerprint
from ..errors import (
    AdapterMismatch,
    AdapterNotFound,
    ConceptMismatch,
    PluginError,
    UnsupportedRuntime,
    UVRError,
    did_you_mean,
)
from ..protocols import Detector, Policy, PolicyTraits
from .carriers import check_text
from .plan import ConceptPlan


def fingerprint(transformer: nn.Module, modules: Mapping[str, nn.Module]) -> Fingerprint:
    """Class, block count, heads and head size of a transformer."""
    config: Mapping[str, Any] = getattr(transformer, "config", {})
    first = next(iter(modules.values()))
    heads: Any = config.get("num_attention_heads") or getattr(first, "heads", 0)
    size: Any = config.get("attention_head_dim") or getattr(first, "head_dim", 0)
    if not size and heads:  # Lumina 2 gives its width alone, FIBO 2 not even that
        size = (getattr(first, "inner_dim", 0) or getattr(getattr(first, "to_q", None), "out_features", 0)) // heads
    return Fingerprint(type(transformer).__name__, len(modules), int(heads), int(size))


def find_adapter(model: object, adapter: str | Adapter | None = None) -> Adapter:
    """The adapter of that name, or the one that recognises the model.

    Raises:
        AdapterNotFound: unknown name, or nothing recognises the model; names what is nearest.
        AdapterMismatch: the named adapter is for another class.
        PluginError: the named adapter does not load, or several recognise the model. Without a name, an adapter
            that does not load is a warning that names its plugin (strict: this error).
    """
    registry = plugins.registry()
    if isinstance(adapter, Adapter):
        match = adapter
    elif adapter is None:
        match = _recognising(model)
    else:
        known = registry.names("adapter")
        if adapter not in known:
            raise AdapterNotFound(f"unknown adapter {adapter!r}{did_you_mean(adapter, known)}{registry.not_loaded}")
        match = registry.get("adapter", adapter)
    if not match.recognises(model):
        raise AdapterMismatch(f"adapter {match.name!r} is for {match.model}, the model is a {type(model).__name__}")
    return match


def _recognising(model: object) -> Adapter:
    """The registered adapter nearest to the model's class."""
    registry = plugins.registry()
    known, adapters = registry.names("adapter"), registry.resolve_all("adapter")
    kind, line = type(model).__name__, [cls.__name__ for cls in type(model).__mro__]
    matching: dict[str, Adapter] = {name: adapter for name, adapter in adapters.items() if adapter.recognises(model)}
    if not matching:
        reasons = registry.names("unfit")
        if reason := next((str(reasons[name][0]) for name in line if name in reasons), None):
            raise AdapterNotFound(f"{kind} cannot be regulated: {reason}. `uvr adapters` lists the models that can")
        skipped = ", ".join(repr(name) for name in known if name not in adapters)
        raise AdapterNotFound(
            f"no adapter recognises {kind}{did_you_mean(kind, {a.model for a in adapters.values()})} "
            + (f"Skipped, because they do not load: {skipped}. " if skipped else "")
            + f"Pass adapter=..., or port the model: CONTRIBUTING.md, 'Add a model in 20 lines'.{registry.not_loaded}"
        )
    distance = {name: line.index(a.model) if a.model in line else len(line) for name, a in matching.items()}
    nearest = [name for name in matching if distance[name] == min(distance.values())]  # a subclass before its base
    if len(nearest) > 1:
        claims = ", ".join(f"{name!r} of plugin {known[name][1]!r}" for name in nearest)
        raise PluginError(f"several adapters recognise {kind}: {claims}; pass adapter=..., or uninstall one")
    return matching[nearest[0]]


def instrument(kind: Literal["detector", "policy"], name_or_object: object) -> plugins.Named:
    """The detector or policy of that name, or the object itself, with its name.

    Raises:
        UVRError: it lacks the method that its protocol asks for.
        PluginError: an unknown name.
    """
    named = plugins.registry().make(kind, name_or_object)
    if kind == "detector" and not isinstance(named.object, Detector):
        raise UVRError(f"detector {named.name!r} has no scores(features, sigma, bank, probe) method")
    if kind == "policy" and not isinstance(named.object, Policy):
        raise UVRError(f"policy {named.name!r} has no edit(located, call) method")
    return named


def make_plan(
    bank: ConceptBank,
    policy: object,
    detector: object,
    threshold: float | None,
    adapter: Adapter,
    transformer: nn.Module,
    verify: bool = True,
) -> ConceptPlan:
    """Resolve names and calibration of one concept; `verify`: and its verification, if it has one.

    Raises:
        UVRError: the detector or policy lacks its method.
        ConceptMismatch: no threshold for this detector.
        PluginError: an unknown name.
    """
    calibration = bank.calibration
    if detector is None:
        detector = calibration.detector if calibration else "anchor"
    finder, remedy = instrument("detector", detector), instrument("policy", policy)
    fixed = getattr(finder.object, "threshold", None)
    same = calibration if calibration is not None and finder.name == calibration.detector else None
    if threshold is None:
        threshold = float(fixed) if fixed is not None else _calibrated(bank, same, finder.name)
    traits = PolicyTraits.of(remedy.object)
    verification = bank.verification if verify else None
    check_text(bank)
    return ConceptPlan(
        bank,
        finder.object,
        remedy.object,
        finder.name,
        remedy.name,
        probe=calibration.probe if calibration else (bank.probes or adapter.probe_paths(transformer))[0],
        window=calibration.window if calibration and (same or fixed is None) else (1.0, 0.0),
        threshold=threshold,
        grow=same.grow if same and same.grow is not None else threshold,
        min_patches=same.min_patches if same else 1,
        memory=same.memory if same else 0.0,
        masks=traits.masks,
        exact=bool(getattr(finder.object, "exact", False)),
        acts=traits.acts,
        needs_uncond=traits.needs_uncond,
        withholds=traits.withholds,
        by_text=traits.by_text,
        verification=verification,
        verifier=None if verification is None else instrument("detector", verification.detector).object,
        look=_look_of(bank, remedy, traits) if bank.source is not None else None,
        text=bank.text,
    )


def _look_of(bank: ConceptBank, remedy: plugins.Named, traits: PolicyTraits) -> ConceptPlan:
    """The plan by which a concept is located in the source."""
    compared = bank.at_source()
    how = compared.calibration
    assert how is not None
    return ConceptPlan(
        compared,
        instrument("detector", how.detector).object,
        remedy.object,
        how.detector,
        remedy.name,
        probe=how.probe,
        window=how.window,
        threshold=how.threshold,
        grow=how.threshold if how.grow is None else how.grow,
        min_patches=how.min_patches,
        masks=traits.masks,
    )


def _calibrated(bank: ConceptBank, calibration: Calibration | None, detector: str) -> float:
    """The threshold of a calibration for this detector."""
    if calibration is not None:
        return calibration.threshold
    was = f"calibrated for {bank.calibration.detector!r}" if bank.calibration else "not calibrated"
    raise ConceptMismatch(
        f"concept {bank.name!r} is {was} and detector {detector!r} needs a threshold: run `uvr calibrate`, "
        "or pass threshold="
    )


def check_plan(plan: ConceptPlan, model: Fingerprint, taps: Sequence[str]) -> None:
    """Raise ConceptMismatch unless the concept was made for this model and its probe is one of the taps."""
    plan.bank.fingerprint.check(model, f"concept {plan.name!r}")
    for probe in (plan.probe, *(how.probe for how in (plan.verification, plan.look, plan.text) if how)):
        if probe not in taps:
            raise ConceptMismatch(
                f"concept {plan.name!r}: probe {probe!r} is no joint attention block of the model"
                f"{did_you_mean(probe, taps)}"
            )


def check_shows(adapter: Adapter, pipeline: type | None, concept: str) -> None:
    """Raise UnsupportedRuntime unless a pipeline of that class can be shown a source alone. None: there is none."""
    if pipeline is None or not adapter.shows_sources(pipeline):
        where = "a bare transformer" if pipeline is None else f"a {pipeline.__name__}"
        raise UnsupportedRuntime(
            f"concept {concept!r} is to be located in the source before it is edited, and nobody knows how to show "
            f"{where} the source alone (adapter {adapter.name!r}, edits: {', '.join(adapter.edits) or 'none'}); attach "
            "to such a pipeline, or with look=False"
        )


def check_looks(plan: Sequence[ConceptPlan], adapter: Adapter, pipeline: object) -> None:
    """Whether the concepts that are to be located in the source can be.

    Args:
        pipeline: what is attached to; None: a bare transformer.

    Raises:
        UnsupportedRuntime: see check_shows. ConceptMismatch: they ask for looks under different texts.
    """
    looking = [each for each in plan if each.look is not None]
    if looking:
        check_shows(adapter, None if pipeline is None else type(pipeline), looking[0].name)
    texts = {each.bank.source.text for each in looking if each.bank.source is not None}
    if len(texts) > 1:
        raise ConceptMismatch(
            f"the concepts look at the source under different texts: {', '.join(map(repr, sorted(texts)))}; one look "
            "serves all that share one: calibrate them under the same (uvr_core.calibrate_source)"
        )
