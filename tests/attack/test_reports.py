"""Plugins that are not pure, numbers of the wrong kind, gradients: an error that says whose fault it is, or none."""

from __future__ import annotations

import contextlib
from typing import Any

import attrs
import pytest
import torch
from rig import Rig, Second, TextOnly, called

import uvr_core
from uvr_core import UVRError
from uvr_core.engine.lookup import find_adapter


def one_call(rig: Rig, inference: bool, **plan: Any) -> Any:
    """A regulated call, as a server makes it."""
    with torch.inference_mode(inference), rig.attach(**plan):
        return rig.run()


class Writing(Second):
    """Changes what it is shown."""

    def __init__(self, target: str):
        self.target = target

    def scores(self, features: torch.Tensor, sigma: float, bank: Any, probe: str) -> torch.Tensor:
        scores = super().scores(features, sigma, bank, probe)
        (features if self.target == "features" else next(iter(bank.tensors.values()))).mul_(0.9)
        return scores


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("target", ["features", "bank"])
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_detector_that_writes_into_what_it_is_shown(name: str, target: str, inference: bool) -> None:
    with pytest.raises(UVRError, match="detector 'second' wrote into a tensor"):
        one_call(Rig(name), inference, detector=Writing(target))


@pytest.mark.parametrize("inference", [False, True])
def test_a_detector_that_writes_when_it_is_asked_for_the_origin(inference: bool) -> None:
    class Telling(Second):
        def origin(self, features: torch.Tensor, core: Any, sigma: float, bank: Any, probe: str) -> torch.Tensor:
            features.zero_()
            return torch.ones(len(features))

    with pytest.raises(UVRError, match="detector 'second' wrote into a tensor"):
        one_call(Rig("flux-kontext"), inference, detector=Telling())


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("target", ["core", "ring", "from_source", "bank"])
def test_a_policy_that_writes_into_what_it_is_shown(target: str, inference: bool) -> None:
    class Widening(TextOnly):
        def edit(self, located: Any, call: Any) -> Any:
            if target == "bank":
                call.direction().vector.zero_()
            else:
                getattr(located, target).fill_(True)
            return super().edit(located, call)

    rig = Rig("flux-kontext")
    taps = find_adapter(rig.transformer).taps(rig.transformer)
    of_taps = {
        f"{kind}/{tap}": torch.ones(1, *size) for tap in taps for kind, size in (("direction", [32]), ("offset", []))
    }
    rig.bank = attrs.evolve(rig.bank, tensors=rig.bank.tensors | of_taps)
    with pytest.raises(UVRError, match="policy 'text-only' wrote into a tensor"):
        one_call(rig, inference, policy=Widening())


@pytest.mark.parametrize("acts", [True, False])
def test_the_posture_is_told_by_what_ran_and_not_by_the_policys_name(acts: bool) -> None:
    policy = attrs.make_class("Named", [], bases=(TextOnly,))()
    policy.name = "observe" if acts else "regulate"
    policy.acts = acts
    if not acts:
        policy.edit = lambda located, call: None
    rig = Rig("flux")
    stock = rig.run()
    with rig.attach(policy=policy) as reg:
        assert torch.equal(rig.run(), stock) is not acts
        assert reg.report.posture == ("regulate" if acts else "observe")


@pytest.mark.parametrize("what", ["to_sparse", "meta"])
def test_scores_that_are_no_numbers(what: str) -> None:
    class Strange(Second):
        def scores(self, *args: Any) -> torch.Tensor:
            scores = super().scores(*args)
            return scores.to_sparse() if what == "to_sparse" else scores.to("meta")

    rig = Rig("flux")
    with rig.attach(detector=Strange()), pytest.raises(UVRError, match="expected dense numbers"):
        rig.run()


def test_more_patches_asked_for_than_the_image_has() -> None:
    rig = Rig("flux")
    reg = rig.attach()
    reg.plan = (attrs.evolve(reg.plan[0], min_patches=65),)
    with reg, pytest.raises(uvr_core.ConceptMismatch, match="from 65 patches, and the image has 64"):
        rig.run()


def test_positions_that_are_no_grid() -> None:
    rig, seen = Rig("flux"), []
    handle = rig.transformer.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs), with_kwargs=True)
    rig.run(num_inference_steps=1)
    handle.remove()
    with rig.attach(to=rig.transformer) as reg, pytest.raises(uvr_core.AdapterMismatch, match="are no grids"):
        with reg.generation():
            rig.transformer(**{**seen[0], "img_ids": torch.arange(64.0)[:, None].expand(-1, 3) * 0 + torch.eye(64, 3)})


def test_a_forward_that_was_only_looked_at_is_computed_again_after_detach() -> None:
    """A checkpoint counts what the graph saves: what detectors are shown is no part of it."""

    class Nowhere(Second):
        def scores(self, *args: Any) -> torch.Tensor:
            return torch.full_like(super().scores(*args), -1.0)

    def gradient(attached: bool) -> torch.Tensor:
        rig = Rig("flux-kontext")
        arguments = called(rig)
        tap = next(iter(find_adapter(rig.transformer).taps(rig.transformer)))
        rig.bank = attrs.evolve(rig.bank, calibration=uvr_core.Calibration("second", tap, (1.0, 0.0), 0.0))
        rig.transformer.requires_grad_(True).train()
        rig.transformer.enable_gradient_checkpointing()
        with rig.attach(to=rig.transformer, detector=Nowhere()) if attached else contextlib.nullcontext() as reg:
            with reg.generation() if attached else contextlib.nullcontext():
                output = rig.transformer(**arguments)[0]
        output.sum().backward()
        return rig.transformer.x_embedder.weight.grad

    assert torch.equal(gradient(True), gradient(False))


def test_gradients_flow_through_a_regulated_forward() -> None:
    rig, seen = Rig("flux"), []
    handle = rig.transformer.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs), with_kwargs=True)
    rig.run(num_inference_steps=1)
    handle.remove()
    rig.transformer.requires_grad_(True)
    with rig.attach(to=rig.transformer) as reg, reg.generation():
        output = rig.transformer(**{k: v.clone() if torch.is_tensor(v) else v for k, v in seen[0].items()})[0]
        output.sum().backward()
        assert [f.located for f in reg.report.findings] == [False, True]
    assert rig.transformer.x_embedder.weight.grad.abs().sum() > 0
