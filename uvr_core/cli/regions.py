"""Where a concept is in generated images: a judge that can point, or a user's masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from .. import plugins
from ..errors import UVRError, did_you_mean
from ..fit.masks import KINDS
from .judges import JudgeSpec
from .load import be_quiet, readable


@attrs.define
class MaskFolder:
    """A user's masks, one PNG per prompt in order of file names: white where the concept is.

    A patch belongs to the concept when a quarter of its pixels do.
    """

    files: Sequence[Path]
    done: int = 0

    @classmethod
    def open(cls, folder: Path, prompts: int) -> MaskFolder:
        """Check the masks.

        Raises:
            UVRError: another number of masks than prompts, or a file that is no image.
        """
        from PIL import Image

        files = sorted(folder.glob("*.png"))
        if len(files) != prompts:
            raise UVRError(f"{folder}: expected {prompts} PNG masks, one per prompt, found {len(files)}")
        for file in files:
            try:
                with Image.open(file) as image:
                    image.load()
            except Exception as error:
                raise UVRError(f"{file}: not a readable PNG: {error}") from error
        return cls(files)

    def __call__(self, images: Sequence[Any], grid: tuple[int, int]) -> Any:
        """(B, H, W) bool for the next B images."""
        import numpy as np
        from PIL import Image

        rows, columns = grid
        masks = []
        for file in self.files[self.done : self.done + len(images)]:
            with Image.open(file) as image:
                white = image.convert("L").point(lambda v: 255 * (v > 127))
            masks.append(np.asarray(white.resize((columns, rows), Image.Resampling.BOX)) >= 64)
        self.done += len(images)
        return np.stack(masks)


def mask_source(spec: str, concept: str, prompts: int) -> tuple[Callable[..., Any] | str, str]:
    """(masks, a word for the provenance) of JUDGE[=MODEL][:label,label], a folder of PNGs, or one of KINDS as it is.

    Tried out before long work. Without labels a judge is asked for the concept's own name; MODEL is what the judge
    loads, for those that load one.
    """
    if spec in KINDS:
        return spec, spec
    path = Path(spec)
    if path.is_dir():
        return MaskFolder.open(path, prompts), "folder of masks"
    told = JudgeSpec.of(spec)
    name, judges = told.name, plugins.registry().names("judge")
    if name not in judges:
        raise UVRError(f"--masks {spec}: no such folder, and no judge {name!r}{did_you_mean(name, [*judges, *KINDS])}")
    be_quiet()
    with readable(f"judge {name}"):
        judge = told.make()
    if not hasattr(judge, "locate"):
        raise UVRError(f"--masks {spec}: judge {name!r} cannot say where things are (it has no locate)")
    labels = list(told.labels) or [concept]
    from PIL import Image

    try:
        judge.locate([Image.new("RGB", (64, 64))], labels, (8, 8))
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise UVRError(
            f"--masks {spec}: judge {name!r} cannot locate {', '.join(labels)} ({what}); "
            f"say what it sees: {name}:LABEL,LABEL"
        ) from error
    return (lambda images, grid: judge.locate(images, labels, grid)), f"judge {name}: {', '.join(labels)}"
