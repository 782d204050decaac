"""Safe Latent Diffusion: the equations, whatever the form of guidance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asked import arrays, pipeline, request, same, stock
from torch import nn

from uvr_plugins.baselines import extra_forward
from uvr_plugins.baselines.sld import SafeLatentDiffusion, _State, safety_guidance

pytestmark = pytest.mark.usefixtures("one_thread")


def test_safety_guidance_is_the_equation() -> None:
    c, u, s = (torch.tensor(v) for v in ([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.5], [1.01, 2.0, -1.0, 1.01]))
    # d = .5 (c - s) = -.005, -.5, 1, -.005; mu = min(1, 100 |d|) where d < .1
    gamma = safety_guidance(c, u, s, sigma=0.5, scale=100.0, threshold=0.1)
    assert gamma.tolist() == pytest.approx([0.5 * 1.01, 2.0, 0.0, 0.5 * 0.51], rel=1e-4)


class Fixed(nn.Module):
    """A transformer that gives back the text it is handed."""

    def forward(self, hidden_states: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
        return (encoder_hidden_states,)


def guided(
    kind: str, scale: float, c: torch.Tensor, u: torch.Tensor, s: torch.Tensor, **options: Any
) -> list[torch.Tensor]:
    """Guided velocities of two steps with constant predictions, as a pipeline would add them up."""
    adapter = extra_forward.adapter_of(pipeline("flux"))
    pipe = type("Pipe", (), {"transformer": Fixed(), "_num_timesteps": 2})()
    method = SafeLatentDiffusion(scale=1.0, threshold=10.0, warmup=0.0, **options)
    guidance = extra_forward.Guidance(kind, scale)  # type: ignore[arg-type]
    state = _State(
        method, pipe, guidance, {"encoder_hidden_states": s}, {"encoder_hidden_states": u}, extra_forward.Steps(adapter)
    )
    found = []
    for sigma in (0.5, 0.25):

        def call(*parts: torch.Tensor, level: float = sigma) -> Any:
            x = torch.cat(parts)
            arguments = {"hidden_states": x, "timestep": torch.full((len(x),), level), "encoder_hidden_states": x}
            return extra_forward.prediction(state.after(arguments, (x,)) or (x,))

        if kind == "two_pass":
            found.append((first := call(c)) + (scale - 1) * (first - (second := call(u))) + 0 * second)
        elif kind == "uc":
            low, high = call(u, c).chunk(2)
            found.append(low + scale * (high - low))
        else:
            found.append(call(c))
    return found


@pytest.mark.parametrize("kind", ["two_pass", "uc", "none"])
def test_sld_subtracts_gamma_whatever_the_form_of_guidance(kind: str) -> None:
    c, u, s = torch.tensor([[1.0, 0.3]]), torch.tensor([[0.0, 0.1]]), torch.tensor([[0.6, 0.5]])
    g = 1.0 if kind == "none" else 3.0
    mine = guided(kind, g, c, u, s, momentum=0.5, beta=0.7)
    nu: Any = 0
    for sigma, velocity in zip((0.5, 0.25), mine, strict=True):
        gamma = ((1 - sigma) * (c - s)).abs().clamp_max(1) * (s - u) + 0.5 * nu
        nu = 0.7 * nu + 0.3 * gamma
        assert torch.allclose(velocity, u + g * (c - u - gamma), atol=1e-6)


def test_sld_gathers_momentum_while_it_warms_up() -> None:
    c, u, s = torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[0.6]])
    pipe = type("Pipe", (), {"transformer": Fixed(), "_num_timesteps": 2})()
    method = SafeLatentDiffusion(scale=1.0, threshold=10.0, warmup=0.5, momentum=1.0, beta=0.0)
    state = _State(
        method, pipe, extra_forward.Guidance("none", 1.0), {"encoder_hidden_states": s}, {"encoder_hidden_states": u},
        extra_forward.Steps(extra_forward.adapter_of(pipeline("flux"))),
    )  # fmt: skip
    out = []
    for sigma in (0.5, 0.25):
        arguments = {"hidden_states": c, "timestep": torch.full((1,), sigma), "encoder_hidden_states": c}
        out.append(float(state.after(arguments, (c,))[0]))
    first, second = 0.5 * 0.4 * 0.6, 0.75 * 0.4 * 0.6
    assert out == pytest.approx([1.0, 1.0 - (second + first)])


@pytest.mark.parametrize("name", ["flux", "flux-kontext"])
def test_sld_without_scale_is_stock(name: str) -> None:
    before = stock(request(name))
    assert same(before, arrays(SafeLatentDiffusion(scale=0.0).generate(request(name))))
    assert same(before, arrays(SafeLatentDiffusion(scale=1e-30, momentum=0.0).generate(request(name))))  # it runs
    assert not same(before, arrays(SafeLatentDiffusion(warmup=0.0).generate(request(name))))
