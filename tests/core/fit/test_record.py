"""Recording: what is read of a run, and that reading changes nothing."""

from __future__ import annotations

from typing import Any

import torch
from fitting import OPTIONS

import uvr_core
from uvr_core.engine.readings import features, text_features
from uvr_core.fit.record import default_probes, recorded
from uvr_core.intercept.calls import JointCall
from uvr_core.sampling import Sampling


def test_recording_the_text_changes_nothing_else(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    probe, seen, text = bank.probes[0], [], []
    with uvr_core.attach(pipe) as reg:
        for reads in (False, True):

            def read(call: JointCall, reads: bool = reads) -> None:
                seen.append(features(call))
                if reads:
                    rows, mass = text_features(call)
                    text.append((call.tap, call.forward.step, rows.shape, mass))

            with reg.recording(read, [probe]):
                images = pipe("a cat", generator=torch.Generator().manual_seed(0), output_type="np", **OPTIONS).images
                seen.append(torch.from_numpy(images))
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))
    assert [(path, step) for path, step, _, _ in text] == [(probe, 0), (probe, 1)]
    assert text[0][2] == (1, 32, 32)
    for _, _, _, mass in text:
        assert mass.shape == (1, 64, 32)
        assert (mass >= 0).all()
        assert (mass.sum(-1) < 1).all()


def test_every_batch_has_its_own_features_and_levels(pipe: Any) -> None:
    sampling = Sampling(["a cat", "a dog", "a hat"], [3, 4, 5], call=OPTIONS, batch_size=2)
    with uvr_core.attach(pipe) as reg:
        probes = default_probes(reg, pipe.transformer)
        batches = list(recorded(reg, pipe, sampling, probes, None))
        alone = list(recorded(reg, pipe, sampling, probes[:1], None, text=True))
    assert [(b.first, len(b.images), b.grid) for b in batches] == [(0, 2, (8, 8)), (2, 1, (8, 8))]
    for batch in batches:
        assert set(batch.features) == {(path, step) for path in probes for step in range(2)}
        assert {x.shape for x in batch.features.values()} == {(len(batch.images), 64, 32)}
        assert batch.sigmas[0] == 1 > batch.sigmas[1]
        assert batch.text == {}
    key = (probes[0], 1)
    assert torch.equal(alone[1].features[key], batches[1].features[key])
    assert not torch.equal(batches[0].features[key][:1], batches[1].features[key])
    assert [x.shape for x in alone[1].text[key]] == [(1, 32, 32), (1, 64, 32)]


def test_probes_are_spread_over_the_middle() -> None:
    class Adapter:
        def probe_paths(self, transformer: Any) -> tuple[str, ...]:
            return tuple(f"blocks.{i}" for i in range(transformer))

    class Attached:
        adapter = Adapter()

    assert default_probes(Attached(), 4) == tuple(f"blocks.{i}" for i in range(4))
    assert default_probes(Attached(), 57) == tuple(f"blocks.{i}" for i in (9, 15, 22, 29, 36, 43))
