"""Localisation from text tokens, ConceptAttention's, with UVR's restriction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch

from uvr_core.adapter import Adapter, Layout
from uvr_core.concepts import ConceptBank
from uvr_core.engine.lookup import fingerprint
from uvr_core.engine.plan import ConceptPlan
from uvr_core.engine.regulation import Regulation
from uvr_core.errors import UnsupportedRuntime
from uvr_core.intercept.calls import AttentionCall
from uvr_core.intercept.forwards import intervene
from uvr_core.intercept.guidance import parts_of
from uvr_core.intercept.ledger import Forward, Run
from uvr_core.intercept.taps import Taps
from uvr_core.protocols import Policy, PolicyTraits, Request
from uvr_plugins.policies import Selective

from .extra_forward import (
    Arguments,
    Guidance,
    Steps,
    adapter_of,
    conditional_part,
    generate,
    guidance_of,
    run,
    watching,
)
from .words import WordTokens, word_tokens, words_of

_share = attrs.validators.and_(attrs.validators.ge(0.0), attrs.validators.le(1.0))


def saliency(
    image: torch.Tensor,
    concepts: torch.Tensor,
    temperature: float,
    rivals: torch.Tensor | None = None,
    counted: torch.Tensor | None = None,
    weight: float = 1.0,
) -> torch.Tensor:
    """Share of each concept in each patch, from one block's attention outputs.

        s(i, m) = softmax_m( cos(o_i, o_m) / temperature )

    ConceptAttention (Helbling et al. 2025, arXiv 2502.04320) takes the softmax of the dot products; the cosine and a
    temperature make blocks and models comparable, so that one threshold can serve.

    Args:
        image: (B, N, C), outputs of the output patches, heads concatenated.
        concepts: (B, M, C), outputs of the concepts' tokens.
        temperature: > 0.
        rivals: (B, T, C), outputs of further tokens that take part in the softmax, or None.
        counted: (B, T) bool, the rivals that do; None: all.
        weight: > 0, of a rival's term in the softmax's sum.

    Returns:
        (B, N, M), 0..1, adding up to 1 over M and the rivals.
    """
    unit = torch.nn.functional.normalize
    names = concepts if rivals is None else torch.cat([concepts, rivals], 1)
    cosine = unit(image.float(), dim=-1) @ unit(names.float(), dim=-1).transpose(1, 2) / temperature
    if rivals is not None:
        cosine[..., concepts.shape[1] :] += math.log(weight)
    if rivals is not None and counted is not None:
        cosine[..., concepts.shape[1] :].masked_fill_(~counted[:, None], -torch.inf)
    return cosine.softmax(-1)[..., : concepts.shape[1]]


@attrs.frozen(eq=False)
class _Map:
    """A detector that gives the scores it is handed."""

    scores_now: list[torch.Tensor]
    name: str = "concept-attention"
    threshold: float = 0.0

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        if not self.scores_now:
            return torch.full(features.shape[:2], -1.0, device=features.device)
        return self.scores_now[0]


@attrs.frozen
class ConceptAttention:
    """Locate the subjects' words with ConceptAttention, online, and restrict what flows there.

    ConceptAttention (Helbling et al. 2025, arXiv 2502.04320) lets words ride along as further text tokens that attend
    to themselves and to the image, while the image does not see them; a patch belongs to the word whose attention
    output its own resembles most. Here, after each step's conditional pass, one more pass runs with the words as its
    text, in which every image token's attention output is replaced by the one that the prompt's pass had there: so the
    image stream is the prompt's, bitwise, and the words attend as the paper says. Nothing else in the model changes.

    Differences from the paper: it explains finished images, over all steps and with concepts chosen by hand. Here a
    step's map is used from the next step on, the words compete with `others` and with the prompt's own tokens, and the
    threshold is fixed. Several words of a subject add up. Telling whether a picture shows the concept at all is not
    what the method was made for; on the zoo it finds the patches of what is there well and the pictures without it
    badly. The threshold was settled on 16 prompts with and 16 without the concept per pipeline.

    The masks are cleaned and added up over the steps as UVR does it, and `policy` restricts what they hold. The cost is
    one pass per step in `window`, and the memory of one pass's attention outputs of the image.

    Attributes:
        threshold: share of the subject's words, 0..1, from which a patch is located.
        others: words that the subjects' words compete with.
        prompt: whether they compete with the prompt's own tokens too.
        temperature: see `saliency`.
        last: share of the blocks, counted from the last, whose maps are averaged, above 0 to 1.
        window: noise levels (high, low) in which the words are looked for.
        min_patches: smallest component that is kept.
        policy: restriction of the located patches.
    """

    threshold: float = attrs.field(default=0.35, validator=_share)
    others: tuple[str, ...] = ("background",)
    prompt: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    temperature: float = attrs.field(default=0.05, validator=attrs.validators.gt(0.0))
    last: float = attrs.field(default=1.0, validator=attrs.validators.and_(_share, attrs.validators.gt(0.0)))
    window: tuple[float, float] = (0.99, 0.85)
    min_patches: int = attrs.field(default=3, validator=attrs.validators.ge(1))
    policy: Policy = attrs.field(factory=Selective)
    name: str = "concept-attention"

    def generate(self, request: Request) -> Sequence[Any]:
        pipe, adapter = request.pipe, adapter_of(request.pipe)
        words = (*words_of(request.subjects), *self.others)
        tokens = word_tokens(request, adapter, words)
        state = _state(self, request, adapter, tokens, words)
        taps = Taps(adapter.taps(pipe.transformer), state.observe).seat()
        try:
            with watching(pipe.transformer, before=state.before, after=state.after):
                return generate(request)
        finally:
            taps.remove()


def _state(
    method: ConceptAttention, request: Request, adapter: Adapter, tokens: WordTokens, words: Sequence[str]
) -> _State:
    pipe = request.pipe
    taps = adapter.taps(pipe.transformer)
    model = fingerprint(pipe.transformer, taps)
    first = next(iter(taps))
    maps: list[list[torch.Tensor]] = [[] for _ in request.subjects]
    policy = method.policy
    plan = [
        ConceptPlan(
            ConceptBank(subject.name, model, {}),
            _Map(mask),
            policy,
            "concept-attention",
            getattr(policy, "name", type(policy).__name__),
            first,
            (1.0, 0.0),
            method.threshold,
            method.threshold,
            min_patches=method.min_patches,
            masks=PolicyTraits.of(policy).masks,
        )
        for subject, mask in zip(request.subjects, maps, strict=True)
    ]
    generator = request.call.get("generator")
    generators = generator if isinstance(generator, (list, tuple)) else [] if generator is None else [generator]
    model_run = Run(tuple(taps), tuple(g.initial_seed() for g in generators) or (0,))
    regulation = Regulation(model_run, adapter, plan, lambda report, grid: None)
    members = [tuple(words.index(word) for word in subject.words) for subject in request.subjects]
    used = tuple(taps)[-max(1, round(method.last * len(taps))) :]
    guidance = guidance_of(pipe, request.call, adapter)
    return _State(
        method,
        pipe.transformer,
        adapter,
        guidance,
        tokens,
        members,
        maps,
        regulation,
        frozenset(used),
        Steps(adapter),
    )


@attrs.define(eq=False)
class _State:
    """One generation. In the words' pass `reading` is true."""

    method: ConceptAttention
    model: torch.nn.Module
    adapter: Adapter
    guidance: Guidance
    tokens: WordTokens
    members: list[tuple[int, ...]]
    maps: list[list[torch.Tensor]]
    regulation: Regulation
    used: frozenset[str]
    steps: Steps
    layout: Layout | None = None
    reading: bool = False
    keeping: bool = False
    counted: torch.Tensor | None = None  # (B, T) bool, the prompt's tokens that its mask leaves
    outputs: dict[str, torch.Tensor] = attrs.field(factory=dict)  # of the image tokens, by path
    rivals: dict[str, torch.Tensor] = attrs.field(factory=dict)  # of the prompt's tokens (B, T, C), by path
    saliencies: list[torch.Tensor] = attrs.field(factory=list)  # (B, N, words), by block

    def before(self, arguments: Arguments) -> None:
        self.steps.next(arguments, self.model)
        whole = {"self": self.model, **arguments}
        layout = self.adapter.layout(whole)
        if layout is None:
            raise UnsupportedRuntime("this baseline does not know forwards that draw nothing")
        self.layout = layout
        high, low = self.method.window
        conditional = self.guidance.kind != "two_pass" or self.steps.number == 0
        self.keeping = conditional and low <= self.steps.sigma <= high
        mask = conditional_part(arguments, self.guidance).get("encoder_hidden_states_mask")
        self.counted = None if mask is None else mask.bool()
        run, batched = self.regulation.run, self.guidance.kind in ("uc", "cu")
        step, number, level = run.next_forward(self.adapter.time(whole), self.layout)
        latents = arguments["hidden_states"]
        batch = len(latents)
        parts = parts_of(self.adapter.guidance, None, number, True, latents, batch // 2 if batched else batch)
        run.open(Forward(step, number, self.layout, level, batch, parts))

    @torch.no_grad()
    def after(self, arguments: Arguments, output: Any) -> None:
        self.regulation.on_forward_end(self.regulation.run.close())
        if not self.keeping:
            return
        self.reading = True
        run(self.model, conditional_part(arguments, self.guidance), self.tokens.text)
        self.reading = False
        shares = torch.stack(self.saliencies).mean(0)
        for now, columns in zip(self.maps, self.members, strict=True):
            now[:] = [shares[..., list(columns)].sum(-1)]
        self.saliencies.clear()
        self.outputs.clear()
        self.rivals.clear()

    def observe(self, call: AttentionCall) -> torch.Tensor | None:
        assert self.layout is not None
        if not self.reading:
            edited = intervene(call, self.regulation, self.adapter)
            if self.keeping and call.query.shape[2] > self.layout.image:
                output = call.output if edited is None else edited
                output = output[self.guidance.conditional(len(output))]
                self.outputs[call.path] = output[:, :, self._image(output.shape[2])].clone()
                if self.method.prompt and call.path in self.used:
                    self.rivals[call.path] = output[:, :, self._text(output.shape[2])].transpose(1, 2).flatten(2)
            return edited
        if call.query.shape[2] <= self.layout.image:
            return None
        tokens = call.query.shape[2]
        image = self._image(tokens)
        output = call.output.clone()
        output[:, :, image] = self.outputs[call.path]
        if call.path in self.used:
            flat = output.transpose(1, 2).flatten(2)
            start = self._text(tokens).start
            before = 0 if self.adapter.output_first else self.layout.image - self.layout.output
            patches = flat[:, image][:, before : before + self.layout.output]
            words = torch.stack([flat[:, [start + at for at in ends]].mean(1) for ends in self.tokens.columns], 1)
            rivals = self.rivals.get(call.path)
            weight = 1 / len(self.tokens.columns[0])  # SD3: each word of the prompt is there once per text encoder
            self.saliencies.append(saliency(patches, words, self.method.temperature, rivals, self.counted, weight))
        return output

    def _image(self, tokens: int) -> slice:
        assert self.layout is not None
        at_start = self.adapter.image_at == "start"
        return slice(0, self.layout.image) if at_start else slice(tokens - self.layout.image, tokens)

    def _text(self, tokens: int) -> slice:
        image = self._image(tokens)
        return slice(image.stop, tokens) if image.start == 0 else slice(0, image.start)
