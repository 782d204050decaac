"""A model class for the tests: a tiny configuration, one forward's inputs, the pipelines around it, what is published.

One file per adapter lies beside this one, of the adapter's file name, and defines FAMILIES. Everything is the library's
own class with random weights; only text comes as made-up embeddings, through the pipelines' own arguments or in place
of their `encode_prompt`.
"""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import diffusers
import torch
from PIL import Image

from uvr_core.testing import Example
from uvr_core.testing.example import patches
from uvr_core.testing.tiny import ZeroedMemory

Size = tuple[int, int]
PROMPTS = ("a cat", "a knife that lies on the left")  # their embeddings differ in length


@attrs.frozen(eq=False)
class Drawing:
    """How a pipeline class of diffusers is made around a tiny transformer, and called.

    Attributes:
        pipeline: class name.
        build: transformer -> the pipeline.
        call: (pipeline, prompts, negative prompt or None, number of references) -> arguments of its call. Guidance is
            on where a negative prompt comes. Height and width must give `grid`.
        parts: the forwards of each step under guidance, each as the letters of its batch parts: "c" follows the
            prompt, "u" the negative prompt, "i" the references alone. Empty: the pipeline does not guide.
        config: where the transformer's differs from the family's.
        truncated: the forwards of the last step under guidance, where guidance ends before it.
        grid: (H, W) of the output patches.
        references: numbers of references with which it draws.
        before: forwards before the first step of each prompt's reference; they are no denoising steps.
        steps, batch: of a run: denoising steps, and prompts at most.
        note: what tells it from another drawing of its pipeline.
        needs: class names of diffusers without which there is no such pipeline.
        since: release of diffusers before which the pipeline cannot be called so; "": none that is supported.
        guides_one: with guidance the stock pipeline fails for more than one prompt.
        unguided: whether guidance can be switched off.
    """

    pipeline: str
    build: Callable[[Any], Any]
    call: Callable[[Any, Sequence[str], str | None, int], dict[str, Any]]
    parts: tuple[str, ...]
    config: Mapping[str, Any] = attrs.field(factory=dict)
    truncated: tuple[str, ...] = ()
    grid: Size = (2, 3)
    references: tuple[int, ...] = (0,)
    before: int = 0
    steps: int = 2
    batch: int = 2
    note: str = ""
    needs: tuple[str, ...] = ()
    since: str = ""
    guides_one: bool = False
    unguided: bool = True


@attrs.frozen(eq=False)
class Release:
    """A published configuration, and what must be read off one forward of 64 x 64 patches.

    Attributes:
        source: Hugging Face repository.
        config: keyword arguments of the class, from its `transformer/config.json`.
        taps: number of joint attention blocks.
        text: text tokens of the forward that `Family.inputs` makes, the adapter's padding aside.
        references: number of references of 64 x 64 patches.
        prepare: what must be done to the transformer so that it runs on the meta device.
        since: release of diffusers before which the class cannot be made so; "": none that is supported.
        on_cpu: arguments whose values the class reads; they stay off the meta device.
    """

    source: str
    config: Mapping[str, Any]
    taps: int
    text: int = 5
    references: int = 0
    prepare: Callable[[Any], None] = lambda transformer: None
    since: str = ""
    on_cpu: tuple[str, ...] = ()


@attrs.frozen(eq=False)
class Family:
    """A transformer class of diffusers as an adapter knows it.

    Attributes:
        adapter: its registered name; model: class name of the transformer.
        since: the diffusers release that first has it, of those that UVR supports (downstream/oldest.txt).
        config: a tiny configuration of at least two joint blocks.
        inputs: (config, height, width, batch, sigma, references) -> arguments of one forward, see Example.inputs.
        drawings: pipelines; the first is the one on which the kit checks guidance.
        releases: published configurations.
        references: whether `inputs` takes references.
        patches, sizes, ragged, reference_sizes: see Example; None: the default.
    """

    adapter: str
    model: str
    config: Mapping[str, Any]
    inputs: Callable[..., dict[str, Any]]
    drawings: tuple[Drawing, ...]
    releases: tuple[Release, ...] = ()
    references: bool = False
    since: str = "0.38"
    patches: Callable[[torch.Tensor, Size], torch.Tensor] = patches
    sizes: tuple[Size, ...] | None = None
    ragged: bool = False
    reference_sizes: tuple[Size, ...] | None = None

    def transformer(self, drawing: Drawing | None = None, seed: int = 0) -> Any:
        """The class at the tiny configuration; weights random, those included that it sets to zero or never fills.

        Gates of one element, which start at zero in several classes, are opened as well.
        """
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        with ZeroedMemory():
            model = getattr(diffusers, self.model)(**{**self.config, **(drawing.config if drawing else {})})
        model.eval().requires_grad_(False)
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5)
        torch.random.set_rng_state(state)
        return model

    def example(self) -> Example:
        """For the conformance kit: the tiny model, in the first of its pipelines."""
        drawing = self.drawings[0] if self.drawings else None
        transformer = self.transformer(drawing)
        pipe = drawing and drawing.build(transformer)

        def generate(prompt: str, negative: str) -> object:
            return draw(pipe, drawing, (prompt,), negative, steps=1)

        guided = {"pipeline": pipe, "generate": generate} if drawing and drawing.parts else {}
        options: dict[str, Any] = {"sizes": self.sizes} if self.sizes else {}
        options |= {"reference_sizes": self.reference_sizes} if self.reference_sizes else {}
        return Example(
            transformer,
            functools.partial(self.inputs, self.config),
            references=self.references,
            ragged=self.ragged,
            patches=self.patches,
            **guided,
            **options,
        )


def assembled(pipeline: str, **components: Any) -> Any:
    """A pipeline of these parts; those that it names and that are not given are None."""
    cls = getattr(diffusers, pipeline)
    names = [p.name for p in inspect.signature(cls.__init__).parameters.values() if p.default is p.empty]
    pipe = cls(**{name: None for name in names if name != "self"} | components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def vae(blocks: int = 2, channels: int = 4) -> Any:
    """AutoencoderKL: a latent is 2 ** (blocks - 1) pixels on a side."""
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(4,) * blocks, layers_per_block=1, latent_channels=channels, norm_num_groups=2,
        mid_block_add_attention=False, scaling_factor=1.0, shift_factor=0.0,
    ).eval()  # fmt: skip


def wan_vae(levels: int) -> Any:
    """AutoencoderKLWan of 4 latent channels: a latent is 2 ** (levels - 1) pixels on a side."""
    torch.manual_seed(0)
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1] * levels, num_res_blocks=1, temperal_downsample=[False] * (levels - 1),
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip


def scheduler(**options: Any) -> Any:
    """FlowMatchEulerDiscreteScheduler, as nearly all of the pipelines have it."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


@torch.no_grad()
def draw(
    pipe: Any, drawing: Drawing, prompts: Sequence[str], negative: str | None, references: int = 0, steps: int = 0
) -> torch.Tensor:
    """Latents, one per prompt, always from the same noise."""
    options = {
        "num_inference_steps": steps or drawing.steps,
        "output_type": "latent",
        "generator": [torch.Generator().manual_seed(40 + i) for i in range(len(prompts))],
    }
    drawn = pipe(**options | drawing.call(pipe, prompts, negative, references))
    return getattr(drawn, "images", drawn)  # ErnieImagePipeline of diffusers 0.38 returns latents bare


def by_text(
    pipe: Any, prompts: Sequence[str], negative: str | None, references: int, height: int = 32, width: int = 48
) -> dict[str, Any]:
    """A `Drawing.call` whose prompts are text, guided at 3. Without a VAE most pipelines take 8 pixels for a latent."""
    options = {"prompt": list(prompts), "height": height, "width": width, "guidance_scale": 1.0}
    if negative is not None:
        options |= {"negative_prompt": [negative] * len(prompts), "guidance_scale": 3.0}
    return options


def packed(config: Mapping[str, Any], height: int, width: int, batch: int, features: int) -> dict[str, Any]:
    """Output tokens (B, N, C) and text (B, 5, features), unless the configuration says another width of either."""
    return {
        "hidden_states": torch.randn(batch, height * width, config.get("in_channels", 64)),
        "encoder_hidden_states": torch.randn(batch, 5, config.get("joint_attention_dim", features)),
    }


def embedding(prompt: str, width: int) -> torch.Tensor:
    """(words + 3, width): another text, other numbers and mostly another length."""
    generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
    return torch.randn(len(prompt.split()) + 3, width, generator=generator)


def embeddings(prompts: Sequence[str], width: int) -> list[torch.Tensor]:
    """`embedding` of each."""
    return [embedding(prompt, width) for prompt in prompts]


def padded(prompts: Sequence[str], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, width) embeddings, padded at the end with zeros, and (B, T) bool, True where text is."""
    texts = embeddings(prompts, width)
    lengths = torch.tensor([len(text) for text in texts])
    return (
        torch.nn.utils.rnn.pad_sequence(texts, batch_first=True),
        torch.arange(int(lengths.max())) < lengths[:, None],
    )


def picture(number: int, height: int, width: int) -> Image.Image:
    """A source picture of noise."""
    generator = torch.Generator().manual_seed(number)
    return Image.fromarray(torch.randint(0, 255, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())


def image_ids(*sizes: Size, axes: int = 3, number: Callable[[int], int] = int) -> torch.Tensor:
    """(I, axes): number(k) of the k-th picture, row, column, 0 ..., float."""
    parts = []
    for index, (height, width) in enumerate(sizes):
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        ids = torch.stack([torch.full_like(rows, number(index)), rows, columns], -1).reshape(-1, 3).float()
        parts.append(torch.nn.functional.pad(ids, (0, axes - 3)))
    return torch.cat(parts)


def last_patches(output: torch.Tensor, grid: Size) -> torch.Tensor:
    """(B, N, C) of a model that returns all tokens, its output's last."""
    return output[:, -grid[0] * grid[1] :]


def count(*sizes: Size) -> int:
    """Patches of pictures of these sizes, together."""
    return sum(height * width for height, width in sizes)
