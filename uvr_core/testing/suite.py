"""Running named checks, and what they found."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import attrs

from ..errors import ConformanceError, UVRError, did_you_mean


class Status(StrEnum):
    """What became of one check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"  # the example offers nothing to hold it against
    EXPECTED = "expected failure"
    UNEXPECTED = "unexpected pass"  # listed as an expected failure, and passed or was skipped


@attrs.frozen
class Outcome:
    """One check: its name, what became of it, and what was expected and got."""

    name: str
    status: Status
    message: str = ""

    @property
    def ok(self) -> bool:
        return self.status not in (Status.FAILED, Status.UNEXPECTED)


@attrs.frozen
class Conformance:
    """All outcomes of one subject, in the order in which the checks ran."""

    subject: str
    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        return all(outcome.ok for outcome in self.outcomes)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes that are not in order: failures, and passes that were expected to fail."""
        return tuple(outcome for outcome in self.outcomes if not outcome.ok)

    def __getitem__(self, name: str) -> Outcome:
        return next(outcome for outcome in self.outcomes if outcome.name == name)

    def __str__(self) -> str:
        lines = [f"{self.subject}: {len(self.failures)} of {len(self.outcomes)} checks failed"]
        for outcome in self.outcomes:
            lines.append(f"  {outcome.name}: {outcome.status}" + (f": {outcome.message}" if outcome.message else ""))
        return "\n".join(lines)


class CheckFailed(UVRError):
    """Raised by a check; the message says what was expected and got."""


class CheckSkipped(UVRError):
    """Raised by a check that does not apply; the message says why."""


def expect(condition: object, message: str, *, expected: object = None, got: object = None) -> None:
    """Raise CheckFailed unless the condition holds."""
    if not condition:
        raise CheckFailed(message if expected is None and got is None else f"{message}: expected {expected}, got {got}")


def skip_unless(condition: object, why: str) -> None:
    """Raise CheckSkipped unless the condition holds."""
    if not condition:
        raise CheckSkipped(why)


def refuse_name(kind: str, subject: object) -> None:
    """Raise UVRError unless the subject of a check is an object: its name or its class is none yet."""
    make = f"uvr_core.plugins.registry().make({kind!r}, {subject!r}).object"
    if isinstance(subject, type):
        make = f"check_{kind}({subject.__name__}(...))"
    if isinstance(subject, (str, type)):
        got = f"the name {subject!r}" if isinstance(subject, str) else f"the class {subject.__name__}"
        raise UVRError(f"check_{kind}: expected the {kind} itself, an object, got {got}; make it first: {make}")


def checks_of(*concerns: object) -> dict[str, Callable[[], Any]]:
    """{name: check} of objects whose own public methods are checks, in the order of definition.

    `one_per_image` is the check "one-per-image".
    """
    return {
        name.replace("_", "-"): getattr(concern, name)
        for concern in concerns
        for name, method in vars(type(concern)).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }


def run_checks(
    subject: str, checks: Mapping[str, Callable[[], Any]], expected_failures: Mapping[str, str] | None
) -> Conformance:
    """Run every check, whatever the others do.

    Raises:
        UVRError: `expected_failures` names a check that does not exist.
        ConformanceError: a check failed, or one that was expected to fail did not.
    """
    expected = dict(expected_failures or {})
    for name in expected:
        if name not in checks:
            raise UVRError(f"expected_failures: no check {name!r}{did_you_mean(name, checks)}")
    outcomes = tuple(_run(name, check, expected.get(name)) for name, check in checks.items())
    report = Conformance(subject, outcomes)
    if not report.ok:
        raise ConformanceError(_summary(report), report=report)
    return report


def _run(name: str, check: Callable[[], Any], reason: str | None) -> Outcome:
    status, message = Status.PASSED, ""
    try:
        check()
    except CheckSkipped as skipped:
        status, message = Status.SKIPPED, str(skipped)
    except CheckFailed as failure:
        status, message = Status.FAILED, str(failure)
    except Exception as error:  # what is under test may raise anything
        status, message = Status.FAILED, f"{type(error).__name__}: {error}"
    if reason is None:
        return Outcome(name, status, message)
    if status is Status.FAILED:
        return Outcome(name, Status.EXPECTED, f"{reason} ({message})")
    return Outcome(name, Status.UNEXPECTED, f"{status} although expected to fail: {reason}; drop it from the map")


def _summary(report: Conformance) -> str:
    lines = [f"{report.subject}: {len(report.failures)} of {len(report.outcomes)} checks failed"]
    return "\n".join([*lines, *(f"  {o.name}: {o.message}" for o in report.failures)])
