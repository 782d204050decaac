"""Reading along: each batch by its own reader, and reading changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fitting import OPTIONS

import uvr_core
from uvr_core.engine.readings import Compared, Reader, contrast, features, text_rows, word_mass
from uvr_core.fit.record import default_probes, read_along
from uvr_core.intercept.calls import JointCall
from uvr_core.sampling import Sampling


def test_every_batch_has_its_own_reader(pipe: Any) -> None:
    sampling = Sampling(["a cat", "a dog", "a hat"], [3, 4, 5], call=OPTIONS, batch_size=2)
    seen: dict[int, list[Any]] = {}

    @contextmanager
    def reading(batch: slice) -> Iterator[Reader]:
        calls: list[Any] = []
        yield lambda call: calls.append((call.tap, call.forward.step, features(call).shape))
        seen[batch.stop - batch.start] = calls

    with uvr_core.attach(pipe) as reg:
        probes = default_probes(reg, pipe.transformer)
        drawn = list(read_along(reg, pipe, sampling, probes, reading, None))
    assert [(one.first, len(one.images), one.grid) for one in drawn] == [(0, 2, (8, 8)), (2, 1, (8, 8))]
    assert seen.keys() == {2, 1}
    for count, calls in seen.items():
        assert [(tap, step) for tap, step, _ in calls] == [(path, step) for step in range(2) for path in probes]
        assert {shape for *_, shape in calls} == {(count, 64, 32)}


def test_reading_the_text_changes_nothing(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    images: list[Any] = []
    masses: list[torch.Tensor] = []

    def read(call: JointCall) -> None:
        words = torch.zeros(1, 32, dtype=torch.bool)
        words[:, 3] = True
        masses.append(word_mass(call, words))
        assert text_rows(call).shape == (1, 32, 32)

    def draw() -> Any:
        return pipe("a cat", generator=torch.Generator().manual_seed(0), output_type="np", **OPTIONS).images

    with uvr_core.attach(pipe) as reg:
        images.append(draw())
        with reg.recording(read, bank.probes[:1]):
            images.append(draw())
    assert np.array_equal(*images)
    assert len(masses) == 2
    for mass in masses:
        assert mass.shape == (1, 64)
        assert ((mass > 0) & (mass < 1)).all()


def test_the_contrast_of_the_text_is_that_of_the_whole_call(pipe: Any) -> None:
    core = np.zeros((1, 8, 8), bool)
    core[0, 2:4, 2:4] = True
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def read(call: JointCall) -> None:
        compared = Compared.of(core, np.zeros_like(core), call.query.device)
        pairs.append((contrast(call, compared)[0], contrast(call, compared, references=False)[0]))

    with uvr_core.attach(pipe) as reg, reg.recording(read, reg.taps[-1:]):
        pipe("a cat", generator=torch.Generator().manual_seed(0), **OPTIONS)
    for whole, text in pairs:
        assert torch.equal(whole, text)


def test_probes_are_spread_over_the_middle() -> None:
    class Adapter:
        def probe_paths(self, transformer: Any) -> tuple[str, ...]:
            return tuple(f"blocks.{i}" for i in range(transformer))

    class Attached:
        adapter = Adapter()

    assert default_probes(Attached(), 4) == tuple(f"blocks.{i}" for i in range(4))
    assert default_probes(Attached(), 57) == tuple(f"blocks.{i}" for i in (9, 15, 22, 29, 36, 43))
