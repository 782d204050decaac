"""Arms of a comparison: the same tasks and seeds, each time under another policy, baseline or control."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs
import numpy as np
import numpy.typing as npt

from uvr_core import ConceptBank, Regulator, UVRError, attach, plugins
from uvr_core.errors import did_you_mean
from uvr_core.ops.masks import scattered as one_scattered

from .prompt_sets import Task

Kind = Literal["stock", "policy", "baseline"]
Where = Literal["located", "oracle", "random"]
STOCK = "stock"
CONTROLS = ("oracle", "random", "observe")
# What `without` switches off, in the terms of a policy's parameters.
TERMS: Mapping[str, Mapping[str, Any]] = {
    "noise": {"alpha": 0.0},
    "attenuation": {"strong": 1.0, "mild": 1.0},
    "boost": {"boost": 1.0},
    "ring": {"ring": 0},
}
# What of a rule can be set beside a policy's parameters; probe and window are the bank's calibration.
RULE = ("threshold", "window", "probe", "anchors")


@attrs.frozen
class Arm:
    """One column of the comparison.

    Attributes:
        name: unique in the run.
        kind: "stock", "policy" or "baseline".
        plugin: name of the policy or baseline.
        detector: name, or None: the one that each bank was calibrated with.
        where: whose patches are regulated: those "located", the "oracle"'s (judge's map of the stock picture), or
            "random" ones, as many.
        set: parameters of the policy, or of the rule (RULE), that differ from the default.
        banks: label of the set of banks; "" = those of the run.
        again: parameters of the same policy, one set for each further draw of an image in which a concept still stands
            at the end; needs banks that are verified. After the last, such an image is withheld.
        tasks: so many of the first tasks alone; None: all.
        seed: of the "random" patches, one stream over the tasks in order; None: each task has its own seed's.
    """

    name: str
    kind: Kind
    plugin: str = ""
    detector: str | None = None
    where: Where = "located"
    set: Mapping[str, Any] = attrs.field(factory=dict)
    banks: str = ""
    again: tuple[Mapping[str, Any], ...] = ()
    tasks: int | None = None
    seed: int | None = None

    def takes(self, tasks: Sequence[Task]) -> list[Task]:
        """Those of the tasks that this arm is about."""
        return [task for task in tasks if self.tasks is None or task.index < self.tasks]

    @property
    def folder(self) -> str:
        """A file name for it."""
        return re.sub(r"[^\w.=-]+", "-", self.name).strip("-")


def plan(
    policies: Sequence[str],
    detectors: Sequence[str] = (),
    baselines: Sequence[str] = (),
    controls: Sequence[str] = (),
    vary: Mapping[str, Sequence[Any]] | None = None,
    without: Sequence[str] = (),
    banks: Sequence[str] = (),
) -> list[Arm]:
    """The arms that the options of `uvr eval` ask for, stock first.

    Args:
        policies: names; each is one arm per detector.
        detectors: names; none: what each bank was calibrated with.
        baselines: names.
        controls: of "oracle", "random" (with the first policy, `random` without a ring) and "observe".
        vary: {parameter: values}: one further arm of the first policy per value.
        without: of TERMS: one further arm of every policy that has the term, with it off.
        banks: labels of further sets of banks: one arm of the first policy each.

    Raises:
        UVRError: unknown name, or a term or parameter that no chosen policy has.
    """
    arms = [Arm(STOCK, "stock")]
    for policy in policies:
        for detector in detectors or (None,):
            arms.append(Arm(policy if len(detectors) < 2 else f"{policy}, {detector}", "policy", policy, detector))
    for term in without:
        arms += _without(term, [arm for arm in arms if arm.kind == "policy"])
    if vary or banks or controls:
        if len(arms) < 2:
            raise UVRError("controls and ablations need a policy")
        first = arms[1]
        for name, values in (vary or {}).items():
            arms += _varied(first, name, values)
        arms += [attrs.evolve(first, name=f"{first.name}, anchors {label}", banks=label) for label in banks]
        arms += [_control(first, control) for control in controls]
    known = plugins.registry().names("baseline") if baselines else {}
    for name in baselines:
        if name not in known:
            raise UVRError(f"--baseline: unknown baseline {name!r}{did_you_mean(name, known)}")
        arms.append(Arm(f"baseline {name}", "baseline", name))
    doubled = [arm.name for arm in arms if [a.folder for a in arms].count(arm.folder) > 1]
    if doubled:
        raise UVRError(f"the arm {doubled[0]!r} is asked for twice")
    return arms


def _without(term: str, arms: Sequence[Arm]) -> list[Arm]:
    """Every arm whose policy has a term, with it off."""
    if not arms:
        raise UVRError("controls and ablations need a policy")
    if term not in TERMS:
        raise UVRError(f"--without: unknown term {term!r}{did_you_mean(term, TERMS)}")
    off = [{name: v for name, v in TERMS[term].items() if name in parameters(arm.plugin)} for arm in arms]
    if not any(off):
        names = ", ".join(dict.fromkeys(arm.plugin for arm in arms))
        raise UVRError(f"--without {term}: none of the policies ({names}) has it")
    pairs = zip(arms, off, strict=True)
    return [attrs.evolve(arm, name=f"{arm.name} without {term}", set=values) for arm, values in pairs if values]


def _varied(first: Arm, name: str, values: Sequence[Any]) -> list[Arm]:
    """The first policy with each value of a parameter."""
    known = parameters(first.plugin)
    if name not in RULE and name not in known:
        hint = did_you_mean(name, [*known, *RULE])
        raise UVRError(f"--vary: policy {first.plugin!r} has no parameter {name!r}{hint}")
    return [attrs.evolve(first, name=f"{first.name}, {name}={value}", set={name: value}) for value in values]


def _control(first: Arm, control: str) -> Arm:
    """One of CONTROLS beside the first policy; random patches have no ring."""
    if control not in CONTROLS:
        raise UVRError(f"--control: unknown control {control!r}{did_you_mean(control, CONTROLS)}")
    if control == "observe":
        return Arm("observe", "policy", "observe", first.detector)
    alone = {"ring": 0} if control == "random" and "ring" in parameters(first.plugin) else {}
    return Arm(f"{control} mask", "policy", first.plugin, where=control, set=alone)  # type: ignore[arg-type]


def parameters(policy: str) -> list[str]:
    """Names of a registered policy's parameters; none if it is no attrs class."""
    registered = plugins.registry().get("policy", policy)
    kind = registered if isinstance(registered, type) else type(registered)
    return [field.name for field in attrs.fields(kind) if field.name != "name"] if attrs.has(kind) else []


def parse_value(text: str) -> Any:
    """A number, true, false, a pair "1.0:0.8", or the text itself."""
    low = text.strip().lower()
    if low in ("true", "false"):
        return low == "true"
    if re.fullmatch(r"[^:]+:[^:]+", text):
        return tuple(parse_value(part) for part in text.split(":"))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()


def attached(
    arm: Arm, pipe: Any, banks: Sequence[ConceptBank], masks: npt.NDArray[np.bool_] | None, adapter: str | None = None
) -> Regulator:
    """The pipeline under a policy arm; the caller detaches.

    Args:
        masks: (B, H, W), for the arms "oracle" and "random": what the judge sees in the stock pictures.
    """
    settings = dict(arm.set)
    rule = {name: settings.pop(name) for name in RULE if name in settings}
    try:
        policy, *again = (plugins.registry().make("policy", arm.plugin, **s).object for s in (settings, *arm.again))
    except (TypeError, ValueError) as error:
        raise UVRError(f"arm {arm.name!r}: {error}") from error
    detector: Any = arm.detector
    if arm.where != "located":
        if masks is None:
            raise UVRError(f"arm {arm.name!r} needs a judge that can point (`locate`), such as 'zoo'")
        detector = plugins.registry().get("detector", "oracle")(masks)
        banks = banks[:1]
    adjusted = [_adjusted(bank, rule) for bank in banks]
    acting: dict[str, Any] = {"escalate": (policy, *again)} if again else {"policy": policy}
    return attach(pipe, adapter, concepts=adjusted, detector=detector, threshold=rule.get("threshold"), **acting)


def _adjusted(bank: ConceptBank, rule: Mapping[str, Any]) -> ConceptBank:
    """The bank with another probe or window, or with its first so many anchors."""
    calibration = {name: rule[name] for name in ("probe", "window") if name in rule}
    if calibration:
        if bank.calibration is None:
            raise UVRError(
                f"concept {bank.name!r} is not calibrated; --vary {next(iter(calibration))} changes a calibration"
            )
        bank = attrs.evolve(bank, calibration=attrs.evolve(bank.calibration, **calibration))
    if "anchors" in rule:
        count = rule["anchors"]
        if not isinstance(count, int) or count < 1:
            raise UVRError(f"anchors: expected a number of anchors >= 1, got {count!r}")
        few = {n: t[:count] if n.startswith("anchors/") else t for n, t in bank.tensors.items()}
        bank = attrs.evolve(bank, tensors=few)
    return bank


def scattered(masks: npt.NDArray[np.bool_], tasks: Sequence[Task], stream: int | None = None) -> npt.NDArray[np.bool_]:
    """(B, H, W): as many patches as each mask has, anywhere.

    Args:
        tasks: one per mask, in order. stream: see `Arm.seed`.
    """
    if stream is None:
        rngs = [np.random.default_rng([task.seed, 0x5CA77E2]) for task in tasks]
    else:
        rng = np.random.default_rng(stream)
        for _ in range(tasks[0].index):  # what earlier batches took of the stream
            one_scattered(masks[0], rng)
        rngs = [rng] * len(tasks)
    return np.stack([one_scattered(mask, rng) for mask, rng in zip(masks, rngs, strict=True)])
