"""Localisation from text tokens: the words ride along unseen, and find what is there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asked import WEAPON, arrays, request, same, stock

import uvr_zoo
from uvr_plugins.baselines import concept_attention, extra_forward
from uvr_plugins.baselines.concept_attention import ConceptAttention, saliency
from uvr_plugins.policies import Observe
from uvr_zoo.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("one_thread")


def test_saliency_is_a_softmax_of_cosines() -> None:
    image = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    words, rivals = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 3.0], [5.0, 0.0]]])
    share = saliency(image, words, 0.5, rivals, torch.tensor([[True, False]]))
    e = float(torch.tensor(2.0).exp())
    assert share[0, :, 0].tolist() == pytest.approx([e / (e + 1), 1 / (e + 1)])
    half = saliency(image, words, 0.5, rivals, torch.tensor([[True, False]]), weight=0.5)
    assert half[0, :, 0].tolist() == pytest.approx([e / (e + 0.5), 1 / (0.5 * e + 1)])
    assert torch.allclose(saliency(image, torch.cat([words, rivals], 1), 0.5).sum(-1), torch.ones(1, 2))


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_words_ride_along_unseen_by_the_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the words' pass the image stream is the prompt's: the model predicts the same for other text."""
    main: list[torch.Tensor] = []
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    stock_after, run = concept_attention._State.after, concept_attention.run

    def after(self: Any, arguments: Any, output: Any) -> None:
        found = extra_forward.prediction(output)
        main.append(found[self.guidance.conditional(len(found))])
        stock_after(self, arguments, output)

    def spy(*args: Any) -> torch.Tensor:
        pairs.append((main[-1], run(*args)))
        return pairs[-1][1]

    monkeypatch.setattr(concept_attention._State, "after", after)
    monkeypatch.setattr(concept_attention, "run", spy)
    images = ConceptAttention(policy=Observe(), window=(1.0, 0.0)).generate(request(name))
    assert len(pairs) == 3
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)
    assert same(stock(request(name)), arrays(images))  # observing changes nothing


def test_concept_attention_finds_the_patches_of_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request("flux", count=4, steps=10)
    images = asked.pipe(**asked.call).images
    shown = [bool(set(row) & set(WEAPON.labels)) for row in uvr_zoo.judge()(images)]
    truth = uvr_zoo.judge().locate(images, list(WEAPON.labels))
    maps: list[torch.Tensor] = []
    stock_after = concept_attention._State.after

    def after(self: Any, arguments: Any, output: Any) -> None:
        stock_after(self, arguments, output)
        maps.extend(now[0].clone() for now in self.maps if now)

    monkeypatch.setattr(concept_attention._State, "after", after)
    method = ConceptAttention(policy=Observe(), window=(1.0, 0.5), prompt=False, temperature=0.3)
    method.generate(request("flux", count=4, steps=10))
    inside, score = truth.flatten(1)[shown], maps[-1][shown]
    better = [(s[t][:, None] > s[~t]).float().mean() for s, t in zip(score, inside, strict=True) if t.any()]
    assert torch.stack(better).mean() > 0.7  # AUROC within a picture; 0.5 is chance
