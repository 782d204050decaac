"""Made-up forward arguments of a small model, by the names that diffusers gives them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import UVRError
from .example import Example, Size
from .source import by_hand

TEXT = 5
Kind = Literal["ids", "shapes", "positions", "picture"]

_TEXT_WIDTHS = (
    *("joint_attention_dim", "text_embed_dim", "cap_feat_dim", "context_in_dim", "text_in_dim", "text_dim"),
    *("text_hidden_dim", "caption_channels", "cross_attention_dim"),
)
_TIMES = ("timestep", "timesteps", "t")
_MASKS = ("encoder_hidden_states_mask", "encoder_attention_mask", "attention_mask")
STATES = ("encoder_hidden_states", "text_bth")
_LENGTHS = "text_lens"
_POOLED = ("pooled_projections", "pooled_embeds")
_PIXELS = ("original_size", "target_size", "crop_coords")


@attrs.frozen(eq=False)
class TinyInputs:
    """Forward arguments of a small model, by the names that diffusers gives them.

    Attributes:
        model: the model.
        config: its constructor arguments.
        scale: the time argument at noise level 1, or at 0 if `clean`.
        clean: whether the time argument is turned round, 0 at noise level 1.
        text: number of text tokens.
        passes: optional arguments that its pipelines give it.
        flat: whether sizes of pictures come one per sample, and not in a list per sample.
    """

    model: nn.Module
    config: Mapping[str, Any]
    scale: float = 1.0
    clean: bool = False
    text: int = TEXT
    passes: frozenset[str] = frozenset()
    flat: bool = False

    @property
    def names(self) -> dict[str, bool]:
        """{argument: whether it is required}."""
        parameters = list(inspect.signature(type(self.model).forward).parameters.values())[1:]
        return {p.name: p.default is p.empty for p in parameters}

    @property
    def kind(self) -> Kind:
        """How the picture's size reaches the model."""
        for name, kind in (("img_ids", "ids"), ("img_shapes", "shapes"), ("position_ids", "positions")):
            if name in self.names:
                return kind  # type: ignore[return-value]
        return "picture"

    @property
    def time(self) -> str:
        """Name of the time argument."""
        return next((name for name in _TIMES if name in self.names), _TIMES[0])

    @property
    def patch(self) -> int:
        """Side of a patch of a picture."""
        patch = self.config.get("patch_size") or 1
        return int(patch[-1] if isinstance(patch, (list, tuple)) else patch)

    @property
    def ragged(self) -> bool:
        """Whether prompts of one batch may differ in length: something tells the model how long each is."""
        return bool(self._masks) or _LENGTHS in self.names

    @property
    def _masks(self) -> list[str]:
        """The masks over the text that it gives."""
        return [name for name in _MASKS if self.names.get(name) or (name in self.names and name in self.passes)]

    def __call__(
        self,
        height: int,
        width: int,
        batch: int = 1,
        sigma: float = 0.5,
        references: tuple[Size, ...] = (),
        text: tuple[int, ...] = (),
    ) -> dict[str, Any]:
        """See uvr_core.testing.Example.inputs.

        Raises:
            UVRError: the forward requires an argument that UVR cannot make up.
        """
        if text:
            longest = attrs.evolve(self, text=max(text))(height, width, batch, sigma, references)
            return shortened(longest, text)
        grids = ((height, width), *references)
        tokens = sum(h * w for h, w in grids)
        arguments: dict[str, Any] = {}
        unknown = []
        for name, required in self.names.items():
            value = self._value(name, required, grids, tokens, batch, sigma)
            if value is not None:
                arguments[name] = value
            elif required:
                unknown.append(name)
        if unknown:
            raise UVRError(
                f"{type(self.model).__name__}.forward requires {', '.join(unknown)}, which UVR cannot make up; "
                f"{by_hand(type(self.model))}"
            )
        return arguments

    def _value(self, name: str, required: bool, grids: tuple[Size, ...], tokens: int, batch: int, sigma: float) -> Any:
        config, (height, width) = self.config, grids[0]
        axes = rotary_axes(config)
        if name == "hidden_states":
            channels = config["in_channels"]
            if self.kind != "picture":
                return torch.randn(batch, tokens, channels)
            return torch.randn(batch, channels, height * self.patch, width * self.patch)
        if name in STATES:
            layers = (config["num_text_layers"],) if "num_text_layers" in config else ()
            return torch.randn(batch, self.text, *layers, self._text_width())
        if name == self.time:
            return torch.full((batch,), self.scale * (1 - sigma if self.clean else sigma))
        if name == "img_ids":
            return _of_samples(_ids(grids, axes), batch)
        if name == "txt_ids":
            return _of_samples(torch.zeros(self.text, axes), batch)
        if name == "position_ids":
            return torch.cat([torch.zeros(self.text, axes), _ids(grids, axes)])
        if name == "img_shapes":
            return [(1, height, width) if self.flat else [(1, h, w) for h, w in grids]] * batch
        if name in _POOLED and (size := config.get("pooled_projection_dim")):
            return torch.randn(batch, size)
        if name == "guidance" and config.get("guidance_embeds"):
            return torch.full((batch,), 3.5)
        if name == _LENGTHS:
            return torch.full((batch,), self.text)
        if name == "prior_token_id":
            return torch.randint(config["prior_vq_quantizer_codebook_size"], (batch, tokens))
        if name == "prior_token_drop":
            return torch.zeros(batch, tokens, dtype=torch.bool)
        if name in self._masks:
            return torch.ones(batch, self.text, dtype=torch.bool)
        if name in _PIXELS and required:
            return torch.tensor([[8.0 * height, 8.0 * width]] * batch)
        return None

    def _text_width(self) -> int:
        for name in _TEXT_WIDTHS:
            if isinstance(self.config.get(name), int):
                return int(self.config[name])
        raise UVRError(f"{type(self.model).__name__}: which constructor argument is the width of the text is not known")


def shortened(arguments: Mapping[str, Any], text: Sequence[int]) -> dict[str, Any]:
    """The same arguments, the prompt of sample i cut to text[i] tokens and padded with zeros, as the masks say.

    Raises:
        UVRError: no argument says how long each prompt is.
    """
    states = {name: value for name, value in arguments.items() if name in STATES and isinstance(value, torch.Tensor)}
    masks = {name: arguments[name] for name in _MASKS if isinstance(arguments.get(name), torch.Tensor)}
    told = {name: mask for name, mask in masks.items() if any(s.shape[:2] == mask.shape for s in states.values())}
    if not told and arguments.get(_LENGTHS) is None:
        raise UVRError("no argument says how long each prompt is")
    lengths = torch.tensor(text)[:, None]
    kept = {name: torch.arange(value.shape[1]) < lengths for name, value in (states | told).items()}
    cut = {
        name: value * kept[name].reshape(*value.shape[:2], *[1] * (value.ndim - 2)) for name, value in states.items()
    }
    cut |= {name: (mask * kept[name]).to(mask.dtype) for name, mask in told.items()}
    if arguments.get(_LENGTHS) is not None:
        cut[_LENGTHS] = lengths[:, 0]
    return {**arguments, **cut}


def rotary_axes(config: Mapping[str, Any]) -> int:
    """Number of rotary axes, which is that of the position ids' columns."""
    return len(next((v for k, v in config.items() if re.match("axes_dim|rope_axes", k) and v), (0, 0, 0)))


def _of_samples(ids: torch.Tensor, batch: int) -> torch.Tensor:
    """(tokens, axes), or (B, tokens, axes) of four axes, as FLUX.2 and its kin have them."""
    return ids.expand(batch, -1, -1) if ids.shape[1] > 3 else ids


def _ids(grids: Sequence[Size], axes: int) -> torch.Tensor:
    """(I, axes): number of the image, row, column, 0 ..."""
    parts = []
    for number, (height, width) in enumerate(grids):
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        ids = torch.stack([torch.full_like(rows, number), rows, columns], -1).reshape(-1, 3).float()
        parts.append(nn.functional.pad(ids, (0, axes - 3)))
    return torch.cat(parts)


class _Angles(TorchDispatchMode):
    """Records the arguments of every sine and cosine."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.sin.default, torch.ops.aten.cos.default):
            self.seen.append(args[0].detach().double())
        return func(*args, **(kwargs or {}))


def time_scale(inputs: TinyInputs) -> float:
    """Radians per unit of the time argument in the fastest sine of its embedding; 0 if no sine depends on it.

    About 1000 where the argument is 0..1, about 1 where it is 0..1000.
    """
    example = Example(inputs.model, inputs)
    early, late = _Angles(), _Angles()
    for value, angles in ((0.25, early), (0.75, late)):
        with angles:
            example.run(inputs(2, 3, sigma=value / inputs.scale), (2, 3))
    pairs = zip(early.seen, late.seen, strict=True)
    steps = [float((b - a).abs().max()) / 0.5 for a, b in pairs if a.shape == b.shape and a.numel()]
    return max(steps, default=0.0)
