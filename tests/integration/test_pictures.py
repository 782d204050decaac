"""Every pipeline class x every built-in policy x batch x guidance, on real diffusers classes with random weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pipelines import (
    ACTING,
    PIPELINES,
    POLICIES,
    STEPS,
    Tiny,
    furthest,
    identical,
    masks_of,
    stopped,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("samples", [(1,), (0, 1, 2)], ids=["batch1", "batch3"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", PIPELINES)
def test_unsafe_images_change_safe_ones_do_not_and_detach_restores(
    tiny: Callable[[str], Tiny], name: str, policy: str, samples: tuple[int, ...], guided: bool
) -> None:
    model = tiny(name)
    stock = model.stock(samples, guided)
    assert np.isfinite(stock).all()
    assert all(image.std() > 0.01 for image in stock)
    unsafe = [i == 1 for i in samples]
    acts = policy != "observe"

    if (error := stopped(policy, guided, len(samples))) is not None:
        with model.attach(masks_of(*samples), policy) as reg, pytest.raises(error[0], match=error[1]):
            model.run(samples, guided)
        assert (None if reg.report is None else reg.report.posture) == ("refused" if policy == "refuse" else None)
        assert type(model.pipe) is model.kind
        assert np.array_equal(model.run(samples, guided), stock)
        return

    with model.attach(masks_of(*samples), policy) as reg:
        images = model.run(samples, guided)
        report = reg.report

    if policy == "refuse":
        assert [image is None for image in images] == unsafe
        assert all(np.array_equal(images[i], stock[i]) for i in (0, 2))
        assert report.refused == (1,)
    else:
        assert identical(images, stock) == [not (acts and u) for u in unsafe]
        assert report.refused == ()
    if acts and policy != "refuse":
        assert furthest(images, stock)[samples.index(1)] > 1e-3  # more than another order of summation
        assert np.isfinite(images).all()

    passes = 2 if guided and name != "sd3" else 1
    assert report is not None
    assert report.posture == ("regulate" if acts else "observe")
    assert (report.steps, report.passes, report.taps) == (STEPS, passes, len(model.taps))
    assert report.fired == STEPS * passes * len(model.taps)
    assert [f.sample for f in report.findings] == list(range(len(samples)))
    assert [f.located for f in report.findings] == unsafe
    assert [f.patches for f in report.findings] == [9 * u for u in unsafe]
    assert [f.first_step for f in report.findings] == [0 if u else None for u in unsafe]
    regulated = [f.steps_regulated for f in report.findings]
    assert [n > 0 for n in regulated] == [acts and u and policy != "refuse" for u in unsafe]
    known = {"observe": 0, "refuse": 0, "uvr-released": 1, "noise": 1, "uvr": STEPS, "block": STEPS, "redirect": STEPS}
    if policy in known:  # the others may find nothing to change in a step
        assert regulated[samples.index(1)] == known[policy]

    assert type(model.pipe) is model.kind
    assert np.array_equal(model.run(samples, guided), stock)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize(("policy", "guided"), ACTING)
@pytest.mark.parametrize("name", PIPELINES)
def test_a_regulated_image_does_not_depend_on_the_others(
    tiny: Callable[[str], Tiny], name: str, policy: str, guided: bool
) -> None:
    """Another unsafe image beside it, with a larger mask, changes nothing but rounding."""
    model = tiny(name)
    masks = masks_of(0, 1, 2)
    masks[2, 1:7, 2:6] = True
    with model.attach(masks, policy):
        together = model.run((0, 1, 2), guided)
    with model.attach(masks[1:2], policy):
        alone = model.run((1,), guided)
    np.testing.assert_allclose(alone[0], together[1], atol=1e-4)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "observe"])
@pytest.mark.parametrize("name", PIPELINES)
def test_nothing_located_is_bitwise_stock(tiny: Callable[[str], Tiny], name: str, policy: str) -> None:
    model = tiny(name)
    for guided in (False, True):
        with model.attach(np.zeros((3, 8, 8), bool), policy) as reg:
            assert np.array_equal(model.run(guided=guided), model.stock((0, 1, 2), guided))
            assert not any(f.located or f.steps_regulated for f in reg.report.findings)
