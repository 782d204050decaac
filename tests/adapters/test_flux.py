"""FLUX.1 and Kontext: what its adapter says of them alone; what is read off the ids: test_arguments.py."""

from __future__ import annotations

from uvr_adapters import flux


def test_a_probe_is_a_single_stream_block() -> None:
    assert set(flux.FLUX.probes) < set(flux.FLUX.attention)
