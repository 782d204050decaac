"""Running checks: what is reported, what is refused, what is left alone."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import attrs
import pytest
import torch
from conformance import SD3, failed, get
from tiny import example

from uvr_core import testing
from uvr_core.errors import UVRError
from uvr_core.testing import Status, check_adapter, check_detector, check_policy
from uvr_core.testing.given import Given
from uvr_core.testing.suite import checks_of, expect, run_checks, skip_unless

pytestmark = pytest.mark.usefixtures("one_thread")


def test_expected_failures() -> None:
    bare = functools.partial(example, "sd3")
    adapter = attrs.evolve(SD3, guidance="batched:cu")
    report = check_adapter(adapter, bare, expected_failures={"guidance": "halves to be sorted out"})
    assert report.ok
    assert report["guidance"].status is Status.EXPECTED
    assert "halves to be sorted out" in report["guidance"].message
    assert "guidance: expected failure: halves to be sorted out" in str(report)


@pytest.mark.parametrize("check", ["guidance", "published-size"])
def test_an_expected_failure_that_does_not_fail_is_reported(check: str) -> None:
    failures = failed(check_adapter, SD3, functools.partial(example, "sd3"), expected_failures={check: "an old fault"})
    assert set(failures) == {check}
    assert "although expected to fail: an old fault" in failures[check]


@pytest.mark.parametrize("kind", ["adapter", "detector", "policy", "judge", "baseline"])
def test_a_name_or_a_class_is_not_yet_what_can_be_checked(kind: str) -> None:
    check: Any = getattr(testing, f"check_{kind}")
    more = (lambda: None,) if kind in ("adapter", "baseline") else ()
    with pytest.raises(UVRError, match=rf"{kind} itself, an object, got the name 'mine'.*registry\(\)\.make\("):
        check("mine", *more)
    with pytest.raises(UVRError, match=rf"got the class Given; make it first: check_{kind}\(Given\("):
        check(Given, *more)


def test_an_expected_failure_of_no_check_is_refused() -> None:
    with pytest.raises(UVRError, match="no check 'guidence'; did you mean 'guidance'"):
        check_adapter(SD3, functools.partial(example, "sd3"), expected_failures={"guidence": "?"})


def test_the_kit_needs_no_test_framework() -> None:
    code = "import uvr_core.testing, uvr_core.doctor.draft, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {"pytest", "uvr_adapters", "uvr_plugins", "uvr_zoo", "diffusers"} & loaded


def test_global_random_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    check_adapter(SD3, functools.partial(example, "sd3"))
    check_detector(get("detector", "anchor"))
    check_policy(get("policy", "uvr"))
    assert torch.equal(state, torch.random.get_rng_state())


class Concern:
    number = 1

    def of_one_kind(self) -> None:
        expect(self.number == 2, "number", expected=2, got=self.number)

    def left_out(self) -> None:
        skip_unless(self._helper(), "not here")

    def _helper(self) -> bool:
        return False


class More(Concern):
    def raises(self) -> None:
        raise KeyError("lost")


def test_checks_are_an_objects_own_public_methods_in_order() -> None:
    checks = checks_of(Concern(), More())
    assert list(checks) == ["of-one-kind", "left-out", "raises"]
    failures = failed(run_checks, "a subject", checks, None)
    assert failures == {"of-one-kind": "number: expected 2, got 1", "raises": "KeyError: 'lost'"}
