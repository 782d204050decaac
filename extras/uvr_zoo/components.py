"""The parts that the zoo's pipelines share, and the judge: what each writes, what it starts from, how it is made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from uvr_core.errors import UVRError

if TYPE_CHECKING:
    from .training import Run

Maker = Callable[[Path, "Run", Path], None]


@attrs.frozen
class Part:
    """Something that is trained before any pipeline. `files` are relative to the zoo's data folder.

    `make(out, run, data)` writes them under `out` and reads the parts that it `needs` from `data`.
    """

    name: str
    about: str
    files: tuple[str, ...]
    minutes: float
    make: Maker = attrs.field(repr=False)
    needs: tuple[str, ...] = ()
    pipelines: tuple[str, ...] = ()

    def exists(self, data: Path) -> bool:
        return all((data / path).exists() for path in self.files)


def _vae(out: Path, run: Run, data: Path) -> None:
    from . import vae

    vae.train(out / "shared" / "vae", run)


def _vae_qwen(out: Path, run: Run, data: Path) -> None:
    from . import vae

    vae.train_qwen(out / "shared" / "vae_qwen", run, _autoencoder(data))


def _text(out: Path, run: Run, data: Path) -> None:
    from . import text

    text.train(out / "shared", run)


def _text_edit(out: Path, run: Run, data: Path) -> None:
    from . import text

    text.train(out / "shared" / "edit", run, edits=0.5, start_from=data / "shared")


def _vision_text(out: Path, run: Run, data: Path) -> None:
    from . import vision_text

    vision_text.train(out / "shared", run)


def _judge(out: Path, run: Run, data: Path) -> None:
    from . import judging

    if run.resume:
        raise UVRError("the judge keeps no checkpoint: leave --resume out")
    judge = judging.train(out / "judge", run.minutes, _autoencoder(data))
    judge.net.half()
    judge.save(out / "judge")


def _autoencoder(data: Path) -> Any:
    from .architectures import load_part

    return load_part("AutoencoderKL", data / "shared" / "vae")


_TEXTS = ("shared/text_encoder", "shared/text_encoder_2", "shared/tokenizer")
_EDIT_TEXTS = ("shared/edit/text_encoder", "shared/edit/text_encoder_2")
_VISION = ("shared/vision_text", "shared/vision_tokenizer")
_FLUX, _QWEN = ("flux", "sd3", "flux-kontext"), ("qwen-image", "qwen-image-edit")

PARTS = {
    part.name: part
    for part in (
        Part("vae", "AutoencoderKL", ("shared/vae",), 15, _vae, (), _FLUX),
        Part("vae-qwen", "AutoencoderKLQwenImage", ("shared/vae_qwen",), 10, _vae_qwen, ("vae",), _QWEN),
        Part("text", "T5 and CLIP text encoders for captions", _TEXTS, 4, _text, (), _FLUX),
        Part("text-edit", "the same for instructions", _EDIT_TEXTS, 6, _text_edit, ("text",), ("flux-kontext",)),
        Part("vision-text", "Qwen2.5-VL", _VISION, 13, _vision_text, (), _QWEN),
        Part("judge", "the judge", ("judge/judge.safetensors", "judge/judge.json"), 7, _judge, ("vae",)),
    )
}


def missing(names: Iterable[str], data: Path) -> list[str]:
    """Those of the named parts that are not in the data folder."""
    return [name for name in names if not PARTS[name].exists(data)]


def missing_for(pipeline: str, data: Path) -> list[str]:
    """The parts of a pipeline that are not in the data folder."""
    return missing((part.name for part in PARTS.values() if pipeline in part.pipelines), data)


def make(part: Part, run: Run, data: Path, export: Path) -> None:
    """Train a part and put its files under `export`, float16, laid out as the zoo's data; all of them or none.

    Raises:
        UVRError: a part that it starts from is not in `data`.
    """
    if absent := missing(part.needs, data):
        raise UVRError(f"{part.name} starts from {absent[0]}, which is not in {data}: first uvr zoo ground {absent[0]}")
    with staged(export, part.files) as stage:
        part.make(stage, run, data)


@contextmanager
def staged(folder: Path, paths: Iterable[str]) -> Iterator[Path]:
    """A folder whose `paths` replace those of `folder` when the block ends well; if it does not, it vanishes."""
    stage = folder / f".unfinished-{os.getpid()}"
    stage.mkdir(parents=True)
    try:
        yield stage
        for path in paths:
            target = folder / path
            if target.is_dir():
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / path, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
