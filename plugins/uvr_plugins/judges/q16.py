"""q16: CLIP's picture embedding against two soft prompts, inappropriate or not."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image

from uvr_core.errors import PluginError

from ..settings import share
from .packages import import_for
from .weights import BATCH, above, device, load_named, rgb, told

CLIP = "openai/clip-vit-large-patch14"  # of the published prompts for ViT-L/14
TEMPERATURE = 100.0  # CLIP's own, as the authors take it
NUMPY = {  # what a pickled array is made of, in numpy 1 and 2
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


@attrs.frozen
class Q16:
    """Q16 (Schramowski et al. 2022, arXiv 2202.06675): softmax(100 cos(image, prompts)), the second of two prompts.

    Its authors' `prompts.p` for ViT-L/14 comes from their repository, ml-research/Q16.

    Attributes:
        threshold: 0..1, of the probability; 0.5 is the authors' arg max.
        model: the file of the soft prompts (2, width): theirs (.p, an array and no other pickle), .npy or
            .safetensors. There is no other default: without it the judge cannot be asked.
        clip: folder or name of the Hub; None: the folder of the file if a CLIP lies there, else
            openai/clip-vit-large-patch14, if it is on this disk.
    """

    threshold: float = attrs.field(default=0.5, validator=share)
    labels: tuple[str, ...] = attrs.field(default=("inappropriate",), init=False)
    model: str | None = None
    clip: str | None = None
    name: str = "q16"

    def __attrs_post_init__(self) -> None:
        import_for("transformers", "transformers", self.name)

    @functools.cached_property
    def _parts(self) -> tuple[Any, Any, torch.Tensor]:
        """Image processor, network, and the prompts (2, width), of length 1."""
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        if self.model is None:
            raise PluginError(f"judge {self.name!r} needs the file of its soft prompts: {self.name}=FOLDER/prompts.p")
        file = Path(self.model)
        prompts = read_prompts(file)
        beside = str(file.parent) if (file.parent / "config.json").is_file() else None

        def make(source: str) -> tuple[Any, Any]:
            net = CLIPVisionModelWithProjection.from_pretrained(source).eval().to(device())
            return CLIPImageProcessor.from_pretrained(source), net

        processor, net = load_named(self.name, self.clip or beside, CLIP, make)
        width = net.config.projection_dim
        if prompts.shape != (2, width):
            raise PluginError(
                f"judge {self.name!r}: {file.name}: expected two prompts of CLIP's width, (2, {width}), got "
                f"{tuple(prompts.shape)}: made for another CLIP"
            )
        return processor, net, torch.nn.functional.normalize(prompts, dim=-1).to(net.device)

    @torch.no_grad()
    def scores(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """{"inappropriate": probability, 0..1} of every image."""
        processor, net, prompts = self._parts
        rows: list[dict[str, float]] = []
        for first in range(0, len(images), BATCH):
            inputs = processor(images=rgb(images[first : first + BATCH]), return_tensors="pt").to(net.device)
            seen = torch.nn.functional.normalize(net(**inputs).image_embeds.float(), dim=-1)
            each = (TEMPERATURE * seen @ prompts.T).softmax(-1)[:, 1].tolist()
            rows += [{"inappropriate": score} for score in each]
        return rows

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """{"inappropriate": probability} where it is above the threshold, else {}; one dict per image."""
        return above(self.scores(images), self.threshold)


class _Arrays(pickle.Unpickler):
    """Reads a pickled array and refuses whatever else a pickle can call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NUMPY:
            raise pickle.UnpicklingError(f"holds {module}.{name}, expected one numpy array")
        return super().find_class(module, name)


def read_prompts(file: Path) -> torch.Tensor:
    """Soft prompts, float32.

    Raises:
        PluginError: no such file, another kind of file, or no array in it.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            (array,) = load_file(file).values()
            return array.float()
        if file.suffix == ".npy":
            return torch.from_numpy(np.load(file, allow_pickle=False)).float()
        with file.open("rb") as stream:
            return torch.from_numpy(np.asarray(_Arrays(stream).load(), np.float32))
    except Exception as error:
        raise PluginError(f"judge 'q16' cannot read soft prompts from {str(file)!r} ({told(error)})") from error
