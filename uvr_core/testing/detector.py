"""check_detector: a detector on random attention outputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import attrs
import torch

from ..concepts import ConceptBank, Fingerprint
from ..protocols import Detector
from .suite import Conformance, checks_of, expect, refuse_name, run_checks, skip_unless

PROBE = "transformer_blocks.0.attn"
BATCH = 3
SIGMAS = (1.0, 0.6, 0.0)


def random_bank(heads: int = 2, head_dim: int = 8, probe: str = PROBE) -> ConceptBank:
    """A bank with every kind of tensor, for one probe."""
    generator = torch.Generator().manual_seed(1)
    width, bins = heads * head_dim, 3
    tensors = {
        "sigma": torch.tensor([1.0, 0.6, 0.2]),
        f"anchors/{probe}": torch.randn(5, width, generator=generator),
        f"direction/{probe}": torch.randn(bins, width, generator=generator),
        f"offset/{probe}": torch.randn(bins, generator=generator),
    }
    return ConceptBank("conformance", Fingerprint("ConformanceModel", 2, heads, head_dim), tensors)


def check_detector(
    detector: Detector,
    *,
    bank: ConceptBank | None = None,
    probe: str = PROBE,
    grids: Sequence[tuple[int, int]] = ((2, 3), (4, 4)),
    per_patch: bool = True,
    expected_failures: Mapping[str, str] | None = None,
) -> Conformance:
    """Hold a detector against the protocol.

    Args:
        detector: the detector.
        bank: what it needs; None: random anchors, direction and offset for `probe`.
        probe: a probe of the bank.
        grids: (H, W) of the features it is given.
        per_patch: whether a patch's score depends on that patch alone, so that it moves with the patch.
        expected_failures: {check: reason}. The checks: protocol, shape-and-dtype, finite, samples-independent,
            patches-move-along, deterministic, inputs-unchanged, no-global-random.

    Raises:
        ConformanceError: a check failed, or an expected failure did not; all are listed, and `report` holds them.
        UVRError: `expected_failures` names no check, or `detector` is a name or a class.
    """
    refuse_name("detector", detector)
    suite = _Suite(detector, bank or random_bank(probe=probe), probe, tuple(grids), per_patch)
    name = getattr(detector, "name", type(detector).__name__)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return run_checks(f"detector {name!r}", checks_of(suite), expected_failures)


@attrs.frozen(eq=False)
class _Suite:
    detector: Detector
    bank: ConceptBank
    probe: str
    grids: tuple[tuple[int, int], ...]
    per_patch: bool

    def _features(self, grid: tuple[int, int], scale: float = 1.0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(grid[0] * 100 + grid[1])
        return scale * torch.randn(BATCH, grid[0] * grid[1], self.bank.width, generator=generator)

    def _scores(self, features: torch.Tensor, sigma: float = 0.6) -> torch.Tensor:
        return self.detector.scores(features, sigma, self.bank, self.probe)

    def protocol(self) -> None:
        method = getattr(self.detector, "scores", None)
        expect(callable(method), "scores", expected="a method", got=method)
        inspect.signature(self.detector.scores).bind(self._features(self.grids[0]), 0.5, self.bank, self.probe)
        threshold = getattr(self.detector, "threshold", None)
        number = threshold is None or isinstance(threshold, (int, float))
        expect(number, "threshold", expected="a number or none", got=repr(threshold))

    def shape_and_dtype(self) -> None:
        for grid in self.grids:
            for sigma in SIGMAS:
                scores, shape = self._scores(self._features(grid), sigma), (BATCH, grid[0] * grid[1])
                where = f"scores of {shape[0]} samples of {shape[1]} patches at noise level {sigma}"
                expect(isinstance(scores, torch.Tensor), where, expected="a tensor", got=type(scores).__name__)
                expect(scores.shape == shape, f"shape of {where}", expected=shape, got=tuple(scores.shape))
                expect(scores.dtype == torch.float32, f"dtype of {where}", expected=torch.float32, got=scores.dtype)

    def finite(self) -> None:
        for scale in (1.0, 0.0, 1e3):
            bad = ~torch.isfinite(self._scores(self._features(self.grids[0], scale)))
            got = f"NaN or Inf in {int(bad.sum())} of {bad.numel()}"
            expect(not bad.any(), f"scores of features of size {scale:g}", expected="finite", got=got)

    def samples_independent(self) -> None:
        for grid in self.grids:
            features = self._features(grid)
            together = self._scores(features)
            for sample in range(BATCH):
                alone = self._scores(features[sample : sample + 1])
                _close(alone, together[sample : sample + 1], f"scores of sample {sample} alone and in a batch of 3")

    def patches_move_along(self) -> None:
        skip_unless(self.per_patch, "per_patch=False: a score may depend on other patches")
        for grid in self.grids:
            features = self._features(grid)
            order = torch.randperm(features.shape[1], generator=torch.Generator().manual_seed(3))
            _close(self._scores(features[:, order]), self._scores(features)[:, order], "scores of permuted patches")

    def deterministic(self) -> None:
        features = self._features(self.grids[0])
        runs = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            runs.append(self._scores(features.clone()).clone())
        self._scores(self._features(self.grids[-1]))
        runs.append(self._scores(features.clone()))
        same = all(torch.equal(runs[0], again) for again in runs[1:])
        expect(same, "scores of the same features, thrice", expected="bitwise the same", got="others")

    def inputs_unchanged(self) -> None:
        features = self._features(self.grids[0])
        before, tensors = features.clone(), {name: t.clone() for name, t in self.bank.tensors.items()}
        self._scores(features)
        changed = [name for name, t in self.bank.tensors.items() if not torch.equal(t, tensors[name])]
        changed += [] if torch.equal(before, features) else ["features"]
        expect(not changed, "inputs changed in place", expected="none", got=", ".join(changed))

    def no_global_random(self) -> None:
        state = torch.random.get_rng_state()
        self._scores(self._features(self.grids[0]))
        unused = torch.equal(state, torch.random.get_rng_state())
        got = "advanced: the pipeline's noise would depend on the detector"
        expect(unused, "global random state", expected="unused", got=got)


def _close(got: torch.Tensor, expected: torch.Tensor, where: str) -> None:
    expect(got.shape == expected.shape, f"shape of {where}", expected=tuple(expected.shape), got=tuple(got.shape))
    error = float((got - expected).abs().nan_to_num(0.0).max())
    scale = float(expected.abs().nan_to_num(0.0, 0.0, 0.0).max()) or 1.0
    expect(error <= 1e-4 * scale, where, expected="the same", got=f"a difference of {error:.3g}")
