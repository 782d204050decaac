"""The kinds of `masks=`: what each draws, and what it makes of the pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fitting import BENIGN, OPTIONS, UNSAFE, drawn_masks
from PIL import Image
from tiny import tiny_zoo

import uvr_core
from uvr_core import UVRError, collect
from uvr_core.fit.masks import Asked, Given, Pairs, Seen, Terms, Words, difference, finder_of, peaks, thumbnails
from uvr_core.intercept.calls import JointCall
from uvr_core.sampling import Drawn, Sampling
from uvr_core.tokens import Role

CALLED = ("knife", "pistol", "bomb")


def sampling(prompts: list[str]) -> Sampling:
    return Sampling(prompts, range(len(prompts)), call=OPTIONS, batch_size=2)


def test_each_kind_has_its_finder_and_a_word_that_is_none_is_refused() -> None:
    terms = Terms("weapon")
    assert isinstance(finder_of("pairs", terms), Pairs)
    assert isinstance(finder_of("words", terms, ["p"]), Words)
    assert isinstance(finder_of(lambda images, grid: None, terms), Asked)
    assert isinstance(finder_of(drawn_masks(4), terms), Given)
    with pytest.raises(UVRError, match=r"got 'pair'.*did you mean 'pairs'"):
        finder_of("pair", terms)


def test_peaks_do_not_hang_on_the_scale_or_on_the_size_of_the_concept() -> None:
    rng = np.random.default_rng(0)
    for shape, part in (((8, 8), (slice(2, 4), slice(2, 5))), ((64, 64), (slice(5, 40), slice(3, 60)))):
        truth = np.zeros((1, *shape), bool)
        truth[(0, *part)] = True
        for scale in (0.01, 1.0, 500.0):
            values = scale * (np.where(truth, 1.0, 0.1) + rng.uniform(0, 0.05, truth.shape))
            assert np.array_equal(peaks(values), truth)
    outlier = np.full((1, 64, 64), 0.1)
    outlier[0, 10:30, 10:30], outlier[0, 0, 0] = 1.0, 50.0
    assert peaks(outlier).sum() == 401
    assert not peaks(np.ones((1, 8, 8))).any()
    assert not peaks(np.zeros((1, 8, 8))).any()


def test_difference_is_by_patch_whatever_the_size() -> None:
    black = Image.new("RGB", (64, 48))
    other = black.copy()
    other.paste((255, 255, 255), (0, 0, 8, 8))
    apart = difference([black], [other], (6, 8))
    assert apart.shape == (1, 6, 8)
    assert apart[0, 0, 0] == 255
    assert apart.sum() == 255
    assert difference([black], [other], (5, 7))[0, 0, 0] > 100  # patches that do not divide the picture


def test_words_masks_are_of_the_patches_that_attend_to_the_words(pipe: Any) -> None:
    """By hand, from the attention matrix of every call."""
    prompts = ["a cat and a knife", "a pistol"]
    mass = torch.zeros(2, 64)

    def read(call: JointCall) -> None:
        weight = (call.query.double() @ call.key.double().mT * 16**-0.5).softmax(-1).mean(1)
        assert call.keys.count(Role.TEXT) == 32
        for row, column in enumerate((5, 2)):  # the first token is <s>
            share = weight[row, call.queries.output, column]
            mass[row] += (share / share.mean()).float()

    with uvr_core.attach(pipe) as reg:
        probes = reg.taps[-2:]
        with reg.recording(read, probes):
            pipe(prompts, generator=[torch.Generator().manual_seed(i) for i in range(2)], **OPTIONS)
        seen = Words(Terms("weapon", CALLED), probes).find(reg, pipe, sampling(prompts), None)
    assert np.array_equal(seen.masks, peaks(mass.numpy().reshape(2, 8, 8)))


def test_words_that_no_prompt_says_are_refused(pipe: Any) -> None:
    with uvr_core.attach(pipe) as reg, pytest.raises(UVRError, match="no prompt says 'weapon'; pass `words`"):
        Words(Terms("weapon"), reg.taps).find(reg, pipe, sampling(UNSAFE), None)


def test_pairs_are_drawn_from_the_same_seeds(pipe: Any) -> None:
    plain = ["a cat on the left", "a hat", "a dog at the top", "a fish"]
    with uvr_core.attach(pipe) as reg:
        seen = Pairs(Terms("weapon", CALLED, plain)).find(reg, pipe, sampling(UNSAFE), None)
    images, others = (
        [image for drawn in sampling(prompts).draw(pipe) for image in drawn.images] for prompts in (UNSAFE, plain)
    )
    assert np.array_equal(seen.masks, peaks(difference(images, others, (8, 8))))
    assert seen.by_source is None


def test_pairs_are_made_from_the_words_and_refused_where_there_are_none(pipe: Any) -> None:
    drawn: list[list[str]] = []

    def spy(**arguments: Any) -> Any:
        drawn.append(arguments["prompt"])
        return pipe(**arguments)

    with uvr_core.attach(pipe) as reg:
        Pairs(Terms("weapon", CALLED)).find(reg, spy, sampling(["a cat and a knife on the left", "pistols"][:1]), None)
        assert drawn == [["a cat and a knife on the left"], ["a cat and on the left"]]
        with pytest.raises(UVRError, match="prompt 1 has no counterpart without the concept: 'a dog'"):
            Pairs(Terms("weapon", CALLED)).find(reg, pipe, sampling(["a knife and a hat", "a dog"]), None)
        with pytest.raises(UVRError, match="without: expected one per prompt, got 1 for 2 prompts"):
            Pairs(Terms("weapon", CALLED, ["a hat"])).find(reg, pipe, sampling(UNSAFE[:2]), None)


# Not pairs on sd3: what its random weights draw differs everywhere alike, where nothing is the concept's.
@pytest.mark.parametrize(
    ("name", "kind"),
    [("flux", "pairs"), ("qwen-image", "pairs"), ("flux", "words"), ("sd3", "words"), ("qwen-image", "words")],
)
def test_a_bank_is_collected_without_masks(name: str, kind: str) -> None:
    pipe = tiny_zoo(name)
    options = {"generate": OPTIONS, "batch_size": 2, "words": CALLED}
    bank = collect(pipe, "weapon", prompts=UNSAFE[:3], masks=kind, benign_prompts=BENIGN[:2], **options)
    assert bank.provenance["mask_source"] == kind
    assert bank.provenance["images_with_concept"] > 0
    assert all(torch.isfinite(tensor).all() for tensor in bank.tensors.values())


def test_masks_that_are_not_one_per_prompt_are_refused(pipe: Any) -> None:
    with pytest.raises(UVRError, match=r"expected 4 of them .*got an array of shape"):
        collect(pipe, "weapon", prompts=UNSAFE, masks=drawn_masks(3), generate=OPTIONS)
    with pytest.raises(UVRError, match=r"masks: expected \(8, 8\)"):
        collect(pipe, "weapon", prompts=UNSAFE, masks=np.ones((4, 4, 4), bool), generate=OPTIONS)


def test_a_picture_that_is_another_one_when_drawn_again_is_refused(pipe: Any) -> None:
    """A pipeline that takes its noise from elsewhere than its generators."""
    calls = iter(range(1000))

    class Careless:
        transformer, vae, scheduler = pipe.transformer, pipe.vae, pipe.scheduler

        def __call__(self, **arguments: Any) -> Any:
            number = next(calls)
            arguments["generator"] = [torch.Generator().manual_seed(number) for _ in arguments["prompt"]]
            result = pipe(**arguments)
            result.images = [image.point(lambda v: (v + 120 * number) % 256) for image in result.images]
            return result

    white = [Image.new("RGB", (64, 64), shade) for shade in ("white", "black")]
    seen = Seen(np.ones((2, 8, 8), bool), None, thumbnails(white))
    seen.check(Drawn(0, white, None, (8, 8), 0.0))
    with pytest.raises(UVRError, match="image 1 is another picture when it is drawn again"):
        seen.check(Drawn(1, white[:1], None, (8, 8), 0.0))

    def everywhere(images: Any, grid: tuple[int, int]) -> np.ndarray:
        return np.ones((len(images), *grid), bool)

    with pytest.raises(UVRError, match="is another picture"):
        collect(Careless(), "weapon", prompts=UNSAFE[:1], masks=everywhere, generate=OPTIONS)
