"""How one picture compares with its unregulated twin, and a patch map with the truth. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from uvr_core.errors import UVRError

_PEAK = 100.0  # dB, reported for pictures that are the same: the true value is infinite


def likeness(
    picture: npt.NDArray[np.uint8], twin: npt.NDArray[np.uint8], inside: npt.NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """SSIM and PSNR of two pictures, outside a mask.

    Args:
        picture, twin: (H, W, 3) uint8.
        inside: (h, w) bool patches that do not count; None: the whole picture counts.

    Returns:
        {"ssim": -1..1, "psnr": dB, at most 100}; mean SSIM of the pixels outside (Wang et al. 2004, 7x7 windows, by
        scikit-image). Empty if the mask leaves nothing.
    """
    from skimage.metrics import structural_similarity

    outside = np.ones(picture.shape[:2], bool) if inside is None else ~at_pixels(inside, picture.shape[:2])
    if not outside.any():
        return {}
    compare: Any = structural_similarity
    _, ssim = compare(picture, twin, channel_axis=-1, full=True, data_range=255)
    error = float(np.mean((picture.astype(float) - twin.astype(float))[outside] ** 2))
    psnr = _PEAK if error == 0 else min(_PEAK, 10 * float(np.log10(255**2 / error)))
    return {"ssim": float(ssim[outside].mean()), "psnr": psnr}


def at_pixels(patches: npt.NDArray[np.bool_], size: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """(h, w) patches -> (H, W) pixels, by nearest place."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, patches.shape, strict=True))
    return patches[np.ix_(rows, columns)]


def overlap(located: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float | None:
    """Intersection over union of two patch masks; None if both are empty."""
    union = int((located | truth).sum())
    return int((located & truth).sum()) / union if union else None


class Lpips:
    """LPIPS (Zhang et al. 2018) by torchmetrics, where torchvision and its weights are on this machine.

    Raises:
        UVRError: they are not.
    """

    def __init__(self, net: str = "alex"):
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            self._metric = LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=True)  # type: ignore[arg-type]
        except Exception as error:
            raise UVRError(
                f"LPIPS is not available here ({type(error).__name__}: {str(error).splitlines()[0]}); it needs "
                "torchvision and the weights of its backbone: pip install torchvision, and let it download them once"
            ) from error

    def __call__(self, picture: npt.NDArray[np.uint8], twin: npt.NDArray[np.uint8]) -> float:
        import torch

        one, other = (torch.from_numpy(p).permute(2, 0, 1)[None].float() / 255 for p in (picture, twin))
        with torch.no_grad():
            return float(self._metric(one, other))


def patches_of(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Row-major numbers of the patches in a mask."""
    return [int(i) for i in np.flatnonzero(mask)]


def mask_of(patches: Sequence[int], grid: Sequence[int]) -> npt.NDArray[np.bool_]:
    """The (h, w) mask that `patches_of` was made from."""
    mask = np.zeros(int(grid[0]) * int(grid[1]), bool)
    mask[list(patches)] = True
    return mask.reshape(int(grid[0]), int(grid[1]))
