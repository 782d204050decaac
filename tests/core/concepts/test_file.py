"""Concept files: what is written comes back bitwise, and no damaged file is ever used."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import hostile
import pytest
import safetensors.torch
import torch
from runner import PROBE, make_bank

import uvr_core
from uvr_core import Calibration, ConceptBank, ConceptMismatch, SourceLook, TextCarriers, load_concepts


def full_bank() -> ConceptBank:
    """A bank with awkward values in every field."""
    bank = make_bank('Ünïcode name, with "quotes"')
    sigma = torch.tensor([1.0, 0.1 + 0.2, 1e-38])
    sigma[2] = torch.finfo(torch.float32).tiny / 2  # subnormal
    return attrs.evolve(
        bank,
        tensors={
            **bank.tensors,
            "sigma": sigma,
            f"anchors/{PROBE}": torch.randn(4, 32).half(),
            f"token/{PROBE}": torch.randn(3, 32).double(),
            f"source/{PROBE}": torch.randn(1, 64),
            f"source_offset/{PROBE}": torch.randn(1),
            f"text/{PROBE}": torch.randn(1, 32),
            f"text_offset/{PROBE}": torch.randn(1),
        },
        calibration=Calibration("contrast", PROBE, (1.0, 1 / 3), 0.1 + 0.2, -2.5, 3, 0.05, {"recall": 0.9, "n": 7}),
        verification=Calibration("anchor", PROBE, (0.3, 0.0), 1.5, tail=(0.1 + 0.2, -7.0), benign=20),
        source=SourceLook("contrast", PROBE, (1.0, 0.99), 0.1 + 0.2, text="change the background to sky"),
        text=TextCarriers(PROBE, 0.1 + 0.2, 1 / 3, {"carrying": [7, 8]}, -2.5),
        provenance={"seed": 7, "nested": {"prompts": ["a knife", "ein Messer é"]}, "none": None},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return full_bank().save(tmp_path / "x.safetensors")


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, str], dict[str, torch.Tensor]], None]) -> None:
    """Change the metadata (JSON decoded in the first mapping) or tensors of a file."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    parsed = {key: json.loads(metadata[key]) for key in ("fingerprint", "calibration", "provenance")}
    change(parsed, metadata, tensors)
    metadata.update({key: json.dumps(value) for key, value in parsed.items() if key in metadata})
    safetensors.torch.save_file(tensors, path, metadata)


def test_a_file_of_the_first_schema_has_no_verification(path: Path) -> None:
    rewrite(
        path, lambda parsed, metadata, tensors: metadata.update(schema="uvr.concept/1") or metadata.pop("verification")
    )
    assert load_concepts(path).verification is None
    assert load_concepts(path).calibration == full_bank().calibration


def test_a_file_of_the_second_schema_has_no_look_at_the_source(path: Path) -> None:
    def older(parsed: object, metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
        metadata.update(schema="uvr.concept/2")
        del metadata["source"], tensors[f"source/{PROBE}"], tensors[f"source_offset/{PROBE}"]

    rewrite(path, older)
    bank = load_concepts(path)
    assert bank.source is None
    assert (bank.calibration, bank.verification) == (full_bank().calibration, full_bank().verification)


def test_a_file_of_the_third_schema_does_not_tell_the_text(path: Path) -> None:
    def older(parsed: object, metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
        metadata.update(schema="uvr.concept/3")
        del metadata["text"], tensors[f"text/{PROBE}"], tensors[f"text_offset/{PROBE}"]

    rewrite(path, older)
    bank = load_concepts(path)
    assert bank.text is None
    assert (bank.calibration, bank.source) == (full_bank().calibration, full_bank().source)


def test_round_trip_is_bitwise(path: Path) -> None:
    torch.manual_seed(0)
    bank = full_bank()
    back = load_concepts(bank.save(path))
    assert back.calibration == bank.calibration
    assert back.source == bank.source
    assert type(back.source) is SourceLook
    assert back.text == bank.text
    hostile.same(bank, back)


def test_without_calibration(tmp_path: Path) -> None:
    bank = attrs.evolve(make_bank(), calibration=None, provenance={})
    assert load_concepts(bank.save(tmp_path / "x.safetensors")).calibration is None


def test_views_and_transposed_tensors_are_saved(tmp_path: Path) -> None:
    base = torch.randn(32, 6)
    bank = make_bank()
    bank.tensors[f"anchors/{PROBE}"] = base.T
    assert torch.equal(load_concepts(bank.save(tmp_path / "x.safetensors")).tensor("anchors", PROBE), base.T)


def cuts(data: bytes) -> list[int]:
    """A length from every part of the file: empty, inside the length field, the header, at its end, the tensors."""
    header = int.from_bytes(data[:8], "little")
    return [0, 1, 7, 8, 9, 8 + header // 2, 8 + header - 1, 8 + header, 8 + header + 1, len(data) - 1]


def test_truncated_anywhere_is_refused(path: Path) -> None:
    data = path.read_bytes()
    for length in cuts(data):
        path.write_bytes(data[:length])
        with pytest.raises(ConceptMismatch, match=r"x\.safetensors.*not a whole safetensors file"):
            load_concepts(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(ConceptMismatch, match="not a whole safetensors file"):
        load_concepts(path)


@pytest.mark.parametrize("claimed", [100 * 10**9, 2**63, 2**64 - 1, 17 * 2**20])
def test_a_huge_header_is_refused_before_anything_is_allocated(
    path: Path, claimed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise AssertionError("handed to safetensors")

    path.write_bytes(struct.pack("<Q", claimed) + b"{" * (18 * 2**20))
    monkeypatch.setattr(safetensors, "safe_open", unreachable)
    tracemalloc.start()
    try:
        with pytest.raises(ConceptMismatch, match=f"claims a header of {claimed} bytes"):
            load_concepts(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def _set(where: str, field: str, value: object) -> Callable[..., None]:
    return lambda parsed, metadata, tensors: parsed[where].__setitem__(field, value)


def _whole(where: str, value: object) -> Callable[..., None]:
    return lambda parsed, metadata, tensors: parsed.__setitem__(where, value)


def _meta(field: str, value: str | None) -> Callable[..., None]:
    def change(parsed: object, metadata: dict[str, str], tensors: object) -> None:
        if value is None:
            del metadata[field]
        else:
            metadata[field] = value

    return change


def _tensor(key: str, value: torch.Tensor | None) -> Callable[..., None]:
    def change(parsed: object, metadata: object, tensors: dict[str, torch.Tensor]) -> None:
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value

    return change


DAMAGE = {
    "another schema": (_meta("schema", "uvr.concept/5"), r"expected schema 'uvr\.concept/4', got 'uvr\.concept/5'"),
    "no schema": (_meta("schema", None), "got None"),
    "another time convention": (_meta("time", "t"), "time convention"),
    "no name": (_meta("name", None), "metadata is damaged.*name"),
    "no fingerprint": (_meta("fingerprint", None), "metadata is damaged"),
    "fingerprint is a list": (_whole("fingerprint", [1]), "metadata is damaged"),
    "an unknown fingerprint field": (_set("fingerprint", "colour", 1), "colour"),
    "heads is a word": (
        _set("fingerprint", "heads", "two"),
        r"heads: expected a whole number from 1 to .*got 'two'",
    ),
    "heads is half": (_set("fingerprint", "heads", 2.0), r"fingerprint\.heads"),
    "provenance is null": (_whole("provenance", None), "provenance: expected dict"),
    "a look without its text": (
        _meta("source", json.dumps({"detector": "contrast", "probe": PROBE, "window": [1, 0.9], "threshold": 1.0})),
        "metadata is damaged.*text",
    ),
    "a look's text is empty": (
        _meta(
            "source",
            json.dumps({"detector": "contrast", "probe": PROBE, "window": [1, 0.9], "threshold": 1.0, "text": ""}),
        ),
        r"sourcelook\.text: expected 1 to .* printable",
    ),
    "no look": (_meta("source", None), "metadata is damaged"),
    "a look of another width": (_tensor(f"source/{PROBE}", torch.zeros(1, 32)), f"source/{PROBE}.*fits no concept"),
    "no text": (_meta("text", None), "metadata is damaged"),
    "a text margin below 0": (
        _meta("text", json.dumps({"probe": PROBE, "threshold": 1.0, "margin": -1.0})),
        r"text\.margin: expected a number >= 0",
    ),
    "a text threshold that is no number": (
        _meta("text", json.dumps({"probe": PROBE, "threshold": "high"})),
        r"threshold: expected a finite number",
    ),
    "a text of another width": (_tensor(f"text/{PROBE}", torch.zeros(1, 64)), f"text/{PROBE}.*fits no concept"),
    "a look of two noise levels": (_tensor(f"source_offset/{PROBE}", torch.zeros(2)), "fits no concept"),
    "calibration is a list": (_whole("calibration", [1]), "calibration: expected dict"),
    "an unknown calibration field": (_set("calibration", "colour", 1), "colour"),
    "threshold is NaN": (_set("calibration", "threshold", float("nan")), "threshold: .*got nan"),
    "threshold is a word": (_set("calibration", "threshold", "0.5"), r"threshold: .*got '0\.5'"),
    "threshold is more than any score": (_set("calibration", "threshold", 1e308), r"threshold: .*got 1e\+308"),
    "grow is infinite": (_set("calibration", "grow", float("inf")), "grow"),
    "window has one side": (_set("calibration", "window", [1.0]), "window"),
    "window is the wrong way round": (
        _set("calibration", "window", [0.2, 0.8]),
        r"window: expected .*got .0\.2",
    ),
    "window is NaN": (_set("calibration", "window", [1.0, float("nan")]), "window"),
    "window is too large a number": (_set("calibration", "window", [10**400, 0]), "window"),
    "no patches": (_set("calibration", "min_patches", 0), "min_patches"),
    "half a patch": (_set("calibration", "min_patches", 1.5), "min_patches"),
    "more than a whole memory": (_set("calibration", "memory", 1.5), r"memory: expected a number in 0\.\.1, got 1\.5"),
    "memory is a word": (_set("calibration", "memory", "all"), r"calibration\.memory"),
    "NaN": (_tensor("sigma", torch.tensor([1.0, torch.nan, 0.0])), "'sigma' holds NaN"),
    "Inf": (_tensor(f"offset/{PROBE}", torch.tensor([1.0, torch.inf, 0.0])), "holds NaN or Inf"),
    "NaN in half": (_tensor(f"anchors/{PROBE}", torch.full((1, 32), torch.nan).half()), "holds NaN or Inf"),
    "integers": (_tensor(f"offset/{PROBE}", torch.zeros(3, dtype=torch.int64)), r"'offset/.*got torch\.int64"),
    "eight bits": (_tensor(f"offset/{PROBE}", torch.zeros(3).to(torch.float8_e4m3fn)), "float8"),
    "another width": (_tensor(f"anchors/{PROBE}", torch.zeros(5, 33)), r"shape \(5, 33\).*width 32"),
    "no anchors": (_tensor(f"anchors/{PROBE}", torch.zeros(0, 32)), r"shape \(0, 32\)"),
    "another number of bins": (_tensor(f"direction/{PROBE}", torch.zeros(2, 32)), r"shape \(2, 32\)"),
    "offsets without bins": (_tensor("sigma", None), "fits no concept"),
    "a scalar sigma": (_tensor("sigma", torch.tensor(1.0)), "x.safetensors"),
    "a token of another width": (_tensor(f"token/{PROBE}", torch.zeros(3, 64)), r"'token/.*shape \(3, 64\).*width 32"),
    "a token for each step missing": (_tensor(f"token/{PROBE}", torch.zeros(2, 32)), r"'token/.*shape \(2, 32\)"),
    "an unknown tensor": (_tensor("hidden/x", torch.zeros(3)), "'hidden/x'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_with_the_file(path: Path, kind: str) -> None:
    change, message = DAMAGE[kind]
    rewrite(path, change)
    with pytest.raises(ConceptMismatch, match=message) as caught:
        load_concepts(path)
    assert str(path) in str(caught.value)


def test_the_rewriting_itself_does_no_damage(path: Path) -> None:
    rewrite(path, lambda *args: None)
    assert load_concepts(path).calibration == full_bank().calibration


def test_public_names() -> None:
    assert uvr_core.load_concepts is load_concepts


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (r"\"min_patches\": 3", r"\"min_patches\": 3, \"threshold\": 9.0", "threshold"),
        (r"\"seed\": 7", r"\"seed\": 7, \"seed\": 8", "seed"),
        ('"time":', '"time":"sigma","time":', "time"),
        ('{"__metadata__":', '{"__metadata__":{},"__metadata__":', "__metadata__"),
    ],
)
def test_a_json_key_that_stands_twice_is_refused(path: Path, old: str, new: str, key: str) -> None:
    """Readers differ in which of the two they take: what one checked is not what another uses."""
    load_concepts(path)
    data = path.read_bytes()
    body = hostile.unpack(data)[1]
    header = data[8 : len(data) - len(body)].decode()
    assert old in header
    path.write_bytes(hostile.pack(header.replace(old, new, 1).encode(), body))
    with pytest.raises(ConceptMismatch, match=f"JSON key '{key}' stands twice|not a whole safetensors file.*{key}"):
        load_concepts(path)
