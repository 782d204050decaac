"""The flows are exact, and measuring them is harmless."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flowing import EDITS, MASKS, PROMPTS, SOURCES, N, measured, options, pipeline
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import uvr_core
from uvr_analysis import measure_flows
from uvr_analysis.flows import LOCATED, OUTPUT, REFERENCE, REST, TEXT
from uvr_core.errors import UVRError

# Where the families put their tokens, said apart from the adapters: (text, output, reference) of `keys` tokens.
SPANS = {
    "flux": lambda keys: (slice(0, 32), slice(32, 96), slice(96, 96)),
    "flux-kontext": lambda keys: (slice(0, 32), slice(32, 96), slice(96, 160)),
    "sd3": lambda keys: (slice(64, keys), slice(0, 64), slice(64, 64)),
    "qwen-image": lambda keys: (slice(0, keys - 64), slice(keys - 64, keys), slice(keys, keys)),
    "qwen-image-edit": lambda keys: (slice(0, keys - 128), slice(keys - 128, keys - 64), slice(keys - 64, keys)),
}


def draw(pipe: Any, name: str, **call: Any) -> list[Image.Image]:
    """The pictures of PROMPTS, with the seeds that `flows` takes."""
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    more = {"image": SOURCES} if name in EDITS else {}
    if "negative_prompt" in call:
        call["negative_prompt"] = [call["negative_prompt"]] * 2
    return pipe(prompt=PROMPTS, generator=generators, **more, **call).images  # type: ignore[no-any-return]


def materialised(name: str, tokens: list[int] | None, masks: np.ndarray | None = None) -> np.ndarray:
    """`share`, from the whole attention matrix in float64. `tokens`: text tokens that are no padding, per image."""
    pipe, calls = pipeline(name), []
    with uvr_core.attach(pipe) as reg, torch.no_grad(), reg.recording(calls.append):
        draw(pipe, name, **options(name))
    share = np.full((2, 2, len(reg.taps), 5, 5), np.nan)
    for call in calls:
        q, k = call.query.double(), call.key.double()
        logits = q @ k.mT * (q.shape[-1] ** -0.5 if call.scale is None else call.scale)
        if call.mask is not None:
            assert call.mask.dtype == torch.bool
            logits = logits.masked_fill(~call.mask, -torch.inf)
        attention = logits.softmax(-1).mean(1).numpy()  # (B, Sq, Sk)
        for image, weights in enumerate(attention):
            text, output, reference = (np.arange(weights.shape[1])[span] for span in SPANS[name](weights.shape[1]))
            kept = text if tokens is None else text[: tokens[image]]
            roles = [kept, output, reference]
            if masks is not None:
                roles += [output[masks[image].ravel()], output[~masks[image].ravel()]]
            for x, rows in enumerate(roles):
                for y, columns in enumerate(roles):
                    if len(rows):
                        share[image, call.forward.step, reg.taps.index(call.tap), x, y] = (
                            weights[rows][:, columns].sum(1).mean()
                        )
    return share


@pytest.mark.parametrize("name", SPANS)
def test_flows_are_those_of_the_whole_attention_matrix(name: str) -> None:
    """Text first and last, references, guidance in one batch and in two passes, masked text, known masks."""
    flows = measured(name, masks=MASKS)
    tokens = None
    if name.startswith("qwen"):
        more = {} if name == "qwen-image" else {"image": SOURCES}
        tokens = pipeline(name).encode_prompt(prompt=PROMPTS, **more)[1].sum(1).tolist()
        assert tokens[0] < tokens[1]  # the first is padded
        assert flows.counts[:, TEXT].tolist() == tokens
    expected = materialised(name, tokens, MASKS)
    np.testing.assert_allclose(flows.share, expected, atol=2e-6)
    assert flows.counts[:, OUTPUT].tolist() == [N, N]
    assert flows.counts[:, REFERENCE].tolist() == [N * (name in EDITS)] * 2
    assert flows.counts[:, LOCATED].tolist() == [9, 8]
    assert np.isnan(flows.share[:, :, :, REFERENCE]).all() == (name not in EDITS)
    roles = [TEXT, OUTPUT, LOCATED, REST] + [REFERENCE] * (name in EDITS)
    np.testing.assert_allclose(flows.share[:, :, :, roles, :LOCATED].sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen-image"])
def test_the_pass_that_follows_the_prompt_is_the_one_measured(name: str) -> None:
    """Of the first step, in which guidance has changed nothing yet: text, output and all their flows."""
    with_guidance = measured(name)
    alone = measured(name, generate=options(name, guided=False))
    np.testing.assert_allclose(with_guidance.share[:, 0], alone.share[:, 0], atol=2e-6)
    assert np.nanmax(np.abs(with_guidance.share[:, 1] - alone.share[:, 1])) > 1e-5


@pytest.mark.parametrize("name", SPANS)
def test_the_pictures_are_bitwise_stock(name: str) -> None:
    pipe = pipeline(name)
    stock = draw(pipe, name, **options(name))
    flows = measured(name, masks=lambda images, grid: MASKS)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(stock, flows.images, strict=True))
    again = draw(pipe, name, **options(name))  # and nothing stays behind
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(stock, again, strict=True))


def test_the_attention_matrix_is_never_held() -> None:
    class Largest(TorchDispatchMode):
        square = False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(x, torch.Tensor) and x.dim() > 2:
                    Largest.square |= x.shape[-2:] == (96, 96)
            return result

    with Largest():
        measured("flux", masks=MASKS)
    assert not Largest.square


def test_batches_change_nothing_and_image_i_has_its_own_seed() -> None:
    whole, parts = measured("flux", masks=MASKS), measured("flux", masks=MASKS, batch_size=1, seed=[0, 1])
    np.testing.assert_allclose(whole.share, parts.share, atol=2e-6)
    assert parts.counts.tolist() == whole.counts.tolist()
    assert len(parts.images) == 2
    assert np.array_equal(parts.masks, MASKS)
    assert not np.allclose(measured("flux", seed=[0, 7]).share[1], whole.share[1], atol=1e-6)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"masks": MASKS[:1]}, "masks: expected one per prompt"),
        ({"masks": np.ones((2, 4, 4))}, "64\\) output patches"),
        ({"seed": [1]}, "seeds: expected one per prompt"),
        ({"sources": SOURCES[:1]}, "source images: expected one per prompt"),
        ({"prompts": [" "]}, "no prompts given"),
    ],
)
def test_what_does_not_match_is_refused(more: dict[str, Any], words: str) -> None:
    more = {"prompts": PROMPTS, "generate": options("flux", 1), **more}
    with pytest.raises(UVRError, match=words):
        measure_flows(pipeline("flux"), more.pop("prompts"), more.pop("sources", None), **more)
