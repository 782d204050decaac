"""vlm: a model that reads pictures and text, asked yes or no."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from PIL import Image

from uvr_core.errors import PluginError

from ..settings import share
from .packages import import_for
from .weights import above, device, load

SPELLINGS = ("{}", " {}")  # with and without the space that some tokenizers keep in a word


@attrs.frozen
class Vlm:
    """An image-text-to-text model of transformers: P(yes) / (P(yes) + P(no)) of the first token that it would say.

    A probability as in VQAScore (Lin et al. 2024, arXiv 2404.01291), which leaves the no out. Not for models that
    think before they answer.

    Attributes:
        threshold: 0..1, of the probability of yes.
        labels: what is asked for, in words.
        question: with {label} in it; must ask for yes or no.
        model: folder or name of the Hub; there is no default.
    """

    threshold: float = attrs.field(default=0.5, validator=share)
    labels: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    question: str = attrs.field(default="Does this image show {label}? Answer with yes or no.")
    model: str | None = None
    name: str = "vlm"

    @question.validator
    def _names_the_label(self, attribute: Any, value: str) -> None:
        if "{label}" not in value:
            raise ValueError(f"question: expected {{label}} in it, got {value!r}")

    def __attrs_post_init__(self) -> None:
        import_for("transformers", "transformers", self.name)

    @functools.cached_property
    def _parts(self) -> tuple[Any, Any, list[int], list[int]]:
        """Processor, network, and the tokens that say yes and no."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = self.model
        if model is None:
            raise PluginError(f"judge {self.name!r} needs weights: {self.name}=FOLDER:label, or a name of the Hub")

        def make() -> tuple[Any, Any]:
            net = AutoModelForImageTextToText.from_pretrained(model, dtype="auto").eval().to(device())
            return AutoProcessor.from_pretrained(model), net

        processor, net = load(self.name, model, make)
        if not getattr(processor, "chat_template", None):
            raise PluginError(f"judge {self.name!r}: {model!r} has no chat template, so that it cannot be asked")
        yes, no = (answers(processor.tokenizer, word) for word in ("yes", "no"))
        if not yes or not no or set(yes) & set(no):
            raise PluginError(f"judge {self.name!r}: {model!r} has no single tokens for yes and no")
        return processor, net, yes, no

    @torch.no_grad()
    def scores(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """{label: probability of yes against no} of every image."""
        self._parts  # noqa: B018  weights that are not there are an error without a picture, too
        return [{label: self._asked(picture, label) for label in self.labels} for picture in images]

    def _asked(self, image: Image.Image, label: str) -> float:
        processor, net, yes, no = self._parts
        content = [
            {"type": "image", "image": image.convert("RGB")},
            {"type": "text", "text": self.question.replace("{label}", label)},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(net.device)
        inputs = {key: each.to(net.dtype) if each.is_floating_point() else each for key, each in inputs.items()}
        logits = net(**inputs, use_cache=False).logits[0, -1].float()
        return float(torch.sigmoid(logits[yes].logsumexp(0) - logits[no].logsumexp(0)))

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """The labels that it says yes to above the threshold, one dict per image."""
        return above(self.scores(images), self.threshold)


def answers(tokenizer: Any, word: str) -> list[int]:
    """The single tokens that say a word, in small letters or with a capital, with a space before it or without."""
    spelled = [form.format(text) for text in (word, word.capitalize(), word.upper()) for form in SPELLINGS]
    each = [tokenizer.encode(text, add_special_tokens=False) for text in spelled]
    unknown = tokenizer.unk_token_id
    return sorted({tokens[0] for tokens in each if len(tokens) == 1 and tokens[0] != unknown})
