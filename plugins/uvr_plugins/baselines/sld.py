"""Safe Latent Diffusion for flow matching: guidance away from a safety concept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import attrs
import torch

from uvr_core.protocols import Request

from .extra_forward import (
    Arguments,
    Guidance,
    Steps,
    adapter_of,
    conditional_part,
    generate,
    guidance_of,
    prediction,
    run,
    watching,
    with_prediction,
)
from .words import joined, text_for, words_of

_share = attrs.validators.and_(attrs.validators.ge(0.0), attrs.validators.le(1.0))


def safety_guidance(
    conditional: torch.Tensor,
    unconditional: torch.Tensor,
    concept: torch.Tensor,
    sigma: float,
    scale: float,
    threshold: float,
) -> torch.Tensor:
    """SLD's gamma before momentum: mu * (concept - unconditional), elementwise.

        mu = min(1, scale * |d|)  where  d < threshold,  else 0;   d = (1 - sigma) * (conditional - concept)

    Schramowski et al. 2023 (arXiv 2211.05105, equations 6 and 7) state it for noise predictions e. A flow-matching
    model predicts the velocity v = e - x of z = (1 - sigma) x + sigma e, so e = z + (1 - sigma) v, and at one z
    differences of noise predictions are (1 - sigma) times differences of velocities: that is d. The factor cancels in
    what is subtracted, which is therefore in units of velocity. The paper prints max(1, |.|) in mu; a scale of at most
    1, as the published implementation has it, is what its text describes.

    Args:
        conditional, unconditional, concept: velocities of one shape.
        sigma: noise level, 1 = pure noise.
        scale: s_S >= 0.
        threshold: lambda, in units of noise.

    Returns:
        The same shape, to be subtracted from the conditional velocity.
    """
    difference = (1 - sigma) * (conditional - concept)
    mu = torch.where(difference < threshold, (scale * difference.abs()).clamp_max(1.0), 0.0)
    return mu * (concept - unconditional)


@attrs.frozen
class SafeLatentDiffusion:
    """Safe Latent Diffusion (SLD; Schramowski et al. 2023, arXiv 2211.05105), one more pass per step with the concept.

        v = u + g (c - u - gamma_t)
        gamma_t = mu (s - u) + momentum * nu_t,   nu_{t+1} = beta nu_t + (1 - beta) gamma_t,   nu_0 = 0

    c, u, s: predictions for the prompt, for the call's negative prompt and for the safety concept (the subjects'
    words); g: the call's guidance scale; mu: see `safety_guidance`. In the first `warmup` of the steps nothing is
    subtracted and momentum gathers. Written from the equations, for velocities.

    With guidance in one batch gamma is taken from the conditional half. With two passes, the conditional one first, the
    unconditional prediction becomes u + gamma g / (g - 1), which gives the pipeline's u + g (c - u) the same value; if
    the pipeline rescales the result (Qwen-Image), that follows. Without guidance, or with guidance distilled into the
    model, v = c - gamma with u from a further pass with an empty prompt: a distilled model gives u + w (c - u) for
    every text, so s - u brings w along. The cost is one, without guidance two, more passes a step.

    Attributes:
        scale: s_S >= 0; 0 is the stock pipeline.
        threshold: lambda.
        warmup: share of the steps, 0..1 (the paper's delta over its 50 steps).
        momentum: s_m, 0..1.
        beta: beta_m, 0..1.

    The default is the paper's "strong" configuration; "max", which erases more and costs more, is registered as
    sld-max.
    """

    scale: float = attrs.field(default=2000.0, validator=attrs.validators.ge(0.0))
    threshold: float = attrs.field(default=0.025, validator=attrs.validators.instance_of(float))
    warmup: float = attrs.field(default=0.14, validator=_share)
    momentum: float = attrs.field(default=0.5, validator=_share)
    beta: float = attrs.field(default=0.7, validator=_share)
    name: str = "sld"

    SETTINGS: ClassVar[dict[str, dict[str, Any]]] = {
        "weak": {"scale": 200.0, "threshold": 0.0, "warmup": 0.30, "momentum": 0.0, "beta": 0.0},
        "medium": {"scale": 1000.0, "threshold": 0.01, "warmup": 0.20, "momentum": 0.3, "beta": 0.4},
        "strong": {"scale": 2000.0, "threshold": 0.025, "warmup": 0.14, "momentum": 0.5, "beta": 0.7},
        "max": {"scale": 5000.0, "threshold": 1.0, "warmup": 0.0, "momentum": 0.5, "beta": 0.7},
    }

    @classmethod
    def setting(cls, name: Literal["weak", "medium", "strong", "max"]) -> SafeLatentDiffusion:
        """One of the paper's configurations (its table of hyper-parameters; warm-up steps of 50 as a share)."""
        return cls(**cls.SETTINGS[name], name="sld" if name == "strong" else f"sld-{name}")

    def generate(self, request: Request) -> Sequence[Any]:
        if self.scale == 0:
            return generate(request)
        adapter = adapter_of(request.pipe)
        guidance = guidance_of(request.pipe, request.call, adapter)
        concept = text_for(request, [joined(words_of(request.subjects))] * request.batch, adapter)
        empty = text_for(request, [""] * request.batch, adapter) if guidance.kind == "none" else {}
        state = _State(self, request.pipe, guidance, concept, empty, Steps(adapter))
        with watching(request.pipe.transformer, after=state.after):
            return generate(request)


MAX = SafeLatentDiffusion.setting("max")


@attrs.define(eq=False)
class _State:
    """One generation."""

    method: SafeLatentDiffusion
    pipe: Any
    guidance: Guidance
    concept: Arguments
    empty: Arguments
    steps: Steps
    conditional: torch.Tensor | None = None
    velocity: torch.Tensor | None = None  # nu

    @torch.no_grad()
    def after(self, arguments: Arguments, output: Any) -> Any:
        model, noise, g = self.pipe.transformer, prediction(output), self.guidance
        self.steps.next(arguments, model)
        if g.kind == "two_pass" and self.steps.number == 0:
            self.conditional = noise
            return None
        concept = run(model, conditional_part(arguments, g), self.concept)
        if g.kind == "none":
            gamma = self._gamma(noise, run(model, arguments, self.empty), concept)
            return with_prediction(output, noise - gamma)
        if g.kind == "two_pass":
            assert self.conditional is not None
            gamma = self._gamma(self.conditional, noise, concept)
            return with_prediction(output, noise + gamma * (g.scale / (g.scale - 1)))
        conditional = g.conditional(len(noise))
        other = slice(0, conditional.start) if conditional.start else slice(conditional.stop, None)
        changed = noise.clone()
        changed[conditional] -= self._gamma(noise[conditional], noise[other], concept)
        return with_prediction(output, changed)

    def _gamma(self, conditional: torch.Tensor, unconditional: torch.Tensor, concept: torch.Tensor) -> torch.Tensor:
        m = self.method
        gamma = safety_guidance(conditional, unconditional, concept, self.steps.sigma, m.scale, m.threshold)
        if self.velocity is None:
            self.velocity = torch.zeros_like(gamma)
        gamma = gamma + m.momentum * self.velocity
        self.velocity = m.beta * self.velocity + (1 - m.beta) * gamma
        total = getattr(self.pipe, "_num_timesteps", None) or len(self.pipe.scheduler.timesteps)
        return torch.zeros_like(gamma) if self.steps.step < m.warmup * total else gamma
