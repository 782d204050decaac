"""Reads every joint call of a batch: who attends to whom, and what a detector would get at its probes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from uvr_core.engine.readings import features
from uvr_core.errors import UVRError
from uvr_core.intercept.calls import JointCall
from uvr_core.ops.masks import Mask
from uvr_core.ops.mass import mass_on
from uvr_core.tokens import Role

from .flows import LOCATED, OUTPUT, REST, ROLES


class Recorder:
    """The masses of one batch; a reader for Regulator.recording.

    Attributes:
        features: {(path, step): (B, N, C) or (B, N, 2C) float32} at the probes, see Detector.scores.
        sigmas: {step: noise level}.
    """

    def __init__(self, located: Mask | None, every_patch: bool, probes: Sequence[str]):
        """
        Args:
            located: (B, H, W) masks known ahead.
            every_patch: keep every output patch's masses, for masks that come later.
            probes: where features are kept.
        """
        self.features: dict[tuple[str, int], torch.Tensor] = {}
        self.sigmas: dict[int, float] = {}
        self._probes, self._every_patch = frozenset(probes), every_patch
        self._located = None if located is None else torch.from_numpy(located.reshape(len(located), -1))
        self._means: dict[tuple[str, int], torch.Tensor] = {}  # (B, 5, M), M = 3, or 4 with located keys
        self._patches: dict[tuple[str, int], torch.Tensor] = {}  # (B, N, 3), on the host
        self._mask: torch.Tensor | None = None  # that `_roles` was made for
        self._roles: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __call__(self, call: JointCall) -> None:
        place = call.tap, call.forward.step
        self.sigmas[call.forward.step] = call.forward.sigma
        if call.tap in self._probes:
            self.features[place] = features(call).detach().cpu()
        if self._roles is None or call.mask is not self._mask:
            self._roles, self._mask = self._roles_of(call), call.mask
        average, weight, _ = self._roles
        mass = mass_on(call.query, call.key, weight, attn_mask=call.mask, scale=call.scale)  # (B, H, Sq, M)
        mass = mass.mean(1, dtype=torch.float32)
        self._means[place] = average @ mass
        if self._every_patch:
            self._patches[place] = mass[:, call.queries.output].cpu()

    def _roles_of(self, call: JointCall) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Averages over query roles (B, 5, Sq), one-hot key roles (B, Sk, M), and tokens of each key role (B, 5)."""
        batch, device = call.query.shape[0], call.query.device
        on_query = torch.zeros(batch, len(ROLES), call.queries.tokens, device=device)
        on_key = torch.zeros(batch, len(ROLES), call.keys.tokens, device=device)
        sides = ((on_query, call.queries), (on_key, call.keys))
        for on, spans in sides:
            for role in Role:
                on[:, role, spans[role]] = 1.0
        if self._located is not None:
            inside, patches = self._located.to(device), call.queries.count(Role.OUTPUT)
            if inside.shape != (batch, patches):
                raise UVRError(
                    f"masks: expected one patch each for ({batch}, {patches}) output patches, got {tuple(inside.shape)}"
                )
            for on, spans in sides:
                on[:, LOCATED, spans.output], on[:, REST, spans.output] = inside.float(), (~inside).float()
        if call.mask is not None:
            hidden = ~_readable(call)
            on_key.masked_fill_(hidden[:, None], 0.0)
            if call.queries.tokens == call.keys.tokens:  # what nobody reads is no token, and no reader either
                on_query.masked_fill_(hidden[:, None], 0.0)
        columns = LOCATED + 1 if self._located is not None else LOCATED
        average = on_query / on_query.sum(2, keepdim=True).clamp(min=1)
        return average, on_key[:, :columns].transpose(1, 2), on_key.sum(2)

    def result(
        self, blocks: Sequence[str], shown: Mask | None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """`share` (B, T, L, 5, 5) and `counts` (B, 5) of the batch; `shown` (B, H, W): the masks, if there are any."""
        assert self._roles is not None
        steps = len(self.sigmas)
        stacked = torch.stack([self._means[path, step] for step in range(steps) for path in blocks], 1).cpu().numpy()
        batch, _, roles, columns = stacked.shape
        share = np.full((batch, steps, len(blocks), roles, roles), np.nan, np.float32)
        share[..., :columns] = stacked.reshape(batch, steps, len(blocks), roles, columns)
        counts = self._roles[2].cpu().numpy().astype(np.int64)
        if columns > LOCATED:
            share[..., REST] = share[..., OUTPUT] - share[..., LOCATED]
        if self._every_patch and shown is not None:
            inside = torch.from_numpy(shown.reshape(batch, -1))
            sides = torch.stack([inside, ~inside], 1).float()  # (B, 2, N)
            counts[:, LOCATED:] = sides.sum(2).numpy()
            sides = sides / sides.sum(2, keepdim=True).clamp(min=1)
            for index, path in enumerate(blocks):
                for step in range(steps):
                    share[:, step, index, LOCATED:, :LOCATED] = (sides @ self._patches[path, step]).numpy()
        empty = np.broadcast_to((counts == 0)[:, None, None, :, None], share.shape)
        share[empty] = np.nan
        return share, counts


def _readable(call: JointCall) -> torch.Tensor:
    """(B, Sk) bool: the keys that some query may read."""
    assert call.mask is not None
    allowed = call.mask if call.mask.dtype == torch.bool else call.mask.float().exp() > 0
    return allowed.any(1).any(1).expand(call.query.shape[0], call.keys.tokens)
