"""Students of a trained free-form pipeline: what they learn, and how one is put together from its teacher and a LoRA.

flux-dev              guidance distilled into the embedding (Meng et al. 2023), as FLUX.1-dev
flux-schnell          4 steps without guidance, as FLUX.1-schnell
qwen-image-lightning  8 steps without guidance, as Qwen-Image-Lightning
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch

from uvr_core.errors import UVRError, did_you_mean

from .words import MAX_TOKENS

ATTENTION = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out")
# Of FLUX: the modulations too, by which each step of a short schedule can be another function; not the text's MLP.
_FLUX = (
    *ATTENTION,
    *("ff.net.0.proj", "ff.net.2", "proj_mlp", "proj_out"),
    *("norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear"),
    *("timestep_embedder.linear_1", "timestep_embedder.linear_2"),
)
_GUIDANCE = ("guidance_embedder.linear_1", "guidance_embedder.linear_2")


@attrs.frozen
class Course:
    """What a student learns.

    Attributes:
        teacher: the pipeline's name.
        steps: of its schedule; None: any level, one step of its teacher each.
        scale: guidance of the teacher, drawn between the two for a student whose embedding is told of it.
        sampling: how the student is called.
        substeps: the teacher's within one of the student's.
        rank, linears: of the LoRA.
        repeats: how many steps a batch of lessons is made for.
    """

    teacher: str
    steps: int | None
    scale: tuple[float, float]
    sampling: dict[str, Any] = attrs.field(factory=dict)
    substeps: int = 1
    rank: int = 5
    linears: tuple[str, ...] = _FLUX
    repeats: int = 1

    @property
    def told(self) -> bool:
        """Whether the student's embedding is told of the scale."""
        return self.scale[0] != self.scale[1]


_TOKENS = {"max_sequence_length": MAX_TOKENS}
COURSES = {
    "flux-dev": Course(
        "flux",
        None,
        (1.0, 4.0),
        {"num_inference_steps": 20, "guidance_scale": 3.0, **_TOKENS},
        linears=_FLUX + _GUIDANCE,
        repeats=2,
    ),
    "flux-schnell": Course(
        "flux",
        4,
        (3.0, 3.0),
        {"num_inference_steps": 4, "guidance_scale": 0.0, **_TOKENS},
        substeps=3,
        repeats=8,
    ),
    "qwen-image-lightning": Course(
        "qwen-image",
        8,
        (3.0, 3.0),
        {"num_inference_steps": 8, "true_cfg_scale": 1.0},
        substeps=3,
        rank=16,
        linears=ATTENTION,
        repeats=4,
    ),
}


def course(name: str) -> Course:
    """Raises UVRError: there is no such student."""
    if name not in COURSES:
        raise UVRError(f"no student {name!r}{did_you_mean(name, COURSES)}")
    return COURSES[name]


def fuse(pipe: Any, lesson: Course, folder: Path) -> None:
    """Make the student of its teacher's pipeline, in place: the LoRA in a folder, fused as diffusers does.

    A student that is not told of guidance has no embedding of it, as FLUX.1-schnell has none.
    """
    model = pipe.transformer
    # As `load_lora_weights` does, which also looks for the text encoders' and warns that there is none.
    model.load_lora_adapter(str(folder), weight_name="pytorch_lora_weights.safetensors")
    model.fuse_lora()
    model.unload_lora()
    if not lesson.told and getattr(model.config, "guidance_embeds", False):
        pipe.register_modules(transformer=without_guidance(model))


@torch.no_grad()
def without_guidance(model: Any, scale: float = 1.0) -> Any:
    """A FluxTransformer2DModel without embedding of guidance that is the given one at that scale."""
    embed = model.time_text_embed
    constant = embed.guidance_embedder(embed.time_proj(torch.tensor([1000 * scale])))[0]
    state = {name: value for name, value in model.state_dict().items() if "guidance_embedder" not in name}
    bias = "time_text_embed.timestep_embedder.linear_2.bias"  # the two embeddings are added
    state[bias] = state[bias] + constant
    with torch.random.fork_rng(devices=[]):  # the weights that a class begins with are drawn
        plain = type(model).from_config({**model.config, "guidance_embeds": False})
    plain.load_state_dict(state)
    return plain.eval()
