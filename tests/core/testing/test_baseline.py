"""check_baseline: what breaks the contract is caught by the check that should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from conformance import failed
from tiny import tiny_flux

from uvr_core.errors import UnsupportedRuntime
from uvr_core.protocols import Request
from uvr_core.testing import Status, check_baseline

pytestmark = pytest.mark.usefixtures("one_thread")


def request(pipe: Any, count: int = 2) -> Request:
    """A short call of a pipeline, the same each time."""
    noise = [torch.Generator().manual_seed(70 + i) for i in range(count)]
    call = {"prompt": ["a tree", "a dog"][:count], "generator": noise, "num_inference_steps": 3}
    return Request(pipe, {**call, "height": 64, "width": 64}, ())


class Good:
    name = "good"

    def generate(self, request: Request) -> Any:
        return request.pipe(**request.call).images


class OneShort(Good):
    def generate(self, request: Request) -> Any:
        return super().generate(request)[:-1]


class Arrays(Good):
    def generate(self, request: Request) -> Any:
        return [np.asarray(image) for image in super().generate(request)]


class LeavesHook(Good):
    def generate(self, request: Request) -> Any:
        request.pipe.transformer.register_forward_hook(lambda *_: None)
        return super().generate(request)


class LeavesHookOnError(Good):
    def generate(self, request: Request) -> Any:
        handle = request.pipe.transformer.register_forward_hook(lambda *_: None)
        images = super().generate(request)
        handle.remove()
        return images


class ChangesWeights(Good):
    def generate(self, request: Request) -> Any:
        with torch.no_grad():
            request.pipe.transformer.x_embedder.bias.mul_(1.001)
        return super().generate(request)


class PatchesForward(Good):
    def generate(self, request: Request) -> Any:
        model = request.pipe.transformer
        model.forward = model.forward
        return super().generate(request)


class SwapsProcessor(Good):
    def generate(self, request: Request) -> Any:
        module = request.pipe.transformer.transformer_blocks[0].attn
        module.set_processor(type(module.processor)())
        return super().generate(request)


class OwnNoise(Good):
    def generate(self, request: Request) -> Any:
        return request.pipe(**{**request.call, "generator": None}).images


class OneSeed(Good):
    def generate(self, request: Request) -> Any:
        fixed = [torch.Generator().manual_seed(0) for _ in request.call["prompt"]]
        return request.pipe(**{**request.call, "generator": fixed}).images


class WritesIntoRequest(Good):
    def generate(self, request: Request) -> Any:
        request.call["prompt"][0] = "a cat"
        return super().generate(request)


@attrs.define
class NeedsArguments(Good):
    scale: float


def test_a_baseline_that_keeps_the_contract() -> None:
    pipe = tiny_flux()
    assert check_baseline(Good(), lambda: request(pipe)).ok


def test_a_refused_pipeline_is_in_order() -> None:
    class Refuses(Good):
        def generate(self, request: Request) -> Any:
            raise UnsupportedRuntime("no guidance")

    pipe = tiny_flux()
    report = check_baseline(Refuses(), lambda: request(pipe))
    assert [o.status for o in report.outcomes] == [Status.PASSED] + [Status.SKIPPED] * 7
    assert "no guidance" in report["same-seeds"].message


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (OneShort, "one-per-prompt"), (Arrays, "one-per-prompt"), (LeavesHook, "pipeline-unchanged"),
        (LeavesHookOnError, "unchanged-after-an-error"), (ChangesWeights, "pipeline-unchanged"),
        (PatchesForward, "pipeline-unchanged"), (SwapsProcessor, "pipeline-unchanged"), (OwnNoise, "same-seeds"),
        (OwnNoise, "no-global-random"), (OneSeed, "follows-seeds"), (WritesIntoRequest, "request-unchanged"),
        (lambda: NeedsArguments(1.0), "protocol"),
    ],
)  # fmt: skip
def test_a_baseline_that_breaks_it_is_caught(make: Callable[[], Any], check: str) -> None:
    pipe = tiny_flux()  # its own: these leave traces
    assert check in failed(check_baseline, make(), lambda: request(pipe, count=1))
