"""Concept banks: what cannot be used cannot be made, tensors are found by name, files are written whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import safetensors.torch
import torch
from runner import PROBE, make_bank

from uvr_core import Calibration, ConceptMismatch, Fingerprint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_bank().save(tmp_path / "x.safetensors")


def test_other_fingerprint_names_the_fields() -> None:
    ours, theirs = Fingerprint("A", 4, 2, 16), Fingerprint("B", 4, 3, 16)
    ours.check(ours, "x")
    with pytest.raises(ConceptMismatch, match=r"model 'A' \(model has 'B'\), heads 2 \(model has 3\)") as caught:
        ours.check(theirs, "x")
    assert "head_dim" not in str(caught.value)
    assert "blocks" not in str(caught.value)


@pytest.mark.parametrize("moment", ["while writing", "before replacing"])
def test_a_crash_in_save_leaves_the_old_file_whole(path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = path.read_bytes()

    def half(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    if moment == "while writing":
        monkeypatch.setattr(Path, "write_bytes", half)
    else:
        monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        make_bank("new").save(path)
    assert path.read_bytes() == old
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_saving_into_no_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises((OSError, safetensors.SafetensorError)):
        make_bank().save(tmp_path / "missing" / "x.safetensors")


def test_missing_tensor_names_what_there_is() -> None:
    with pytest.raises(ConceptMismatch, match=f"no 'anchors' for probe 'nowhere'.*anchors/{PROBE}"):
        make_bank().tensor("anchors", "nowhere")


def test_nearest_bin() -> None:
    bank = make_bank()  # bins 1.0, 0.8, 0.5
    assert [bank.bin_at(s) for s in (2.0, 0.91, 0.89, 0.66, 0.64, 0.0)] == [0, 0, 1, 1, 2, 2]


def test_a_bank_with_nan_cannot_be_made() -> None:
    bank = make_bank()
    with pytest.raises(ConceptMismatch, match="sigma"):
        attrs.evolve(bank, tensors={**bank.tensors, "sigma": torch.full((3,), torch.nan)})


CALIBRATION = Calibration("contrast", PROBE, (1.0, 0.0), 0.5)
NUMBERS: dict[str, list[Any]] = {
    "threshold": [float("nan"), float("inf"), -float("inf"), 1e308, None, "0.5", True],
    "grow": [float("nan"), float("inf"), "0.5"],
    "memory": [float("nan"), -0.1, 1.1, None],
    "window": [(0.0, 1.0), (float("nan"), 0.0), (1.0, float("nan")), (float("inf"), 0.0), (1.0,), None, "10"],
    "min_patches": [0, -1, 1.5, True, 2**31 + 1],
    "max_false_positive": [float("nan"), None],
    "detector": ["", "a\nb", 7, "\x1b[2J"],
    "probe": ["", 7],
    "measured": [None, [1]],
    "tail": [(1.0, float("nan")), (1.0, 2.0), "10", None, (1.0,)],
    "benign": [1.5, "3"],
}


@pytest.mark.parametrize("field", NUMBERS)
def test_a_calibration_built_in_code_is_refused_as_one_from_a_file_is(field: str) -> None:
    for value in NUMBERS[field]:
        with pytest.raises(ConceptMismatch, match=rf"calibration\.{field}: expected "):
            attrs.evolve(CALIBRATION, **{field: value})


def test_numbers_of_numpy_and_whole_numbers_are_numbers() -> None:
    usual = attrs.evolve(CALIBRATION, threshold=np.float32(0.25), window=[1, 0], memory=1, min_patches=np.int64(2))
    assert usual.window == (1.0, 0.0)
    assert all(isinstance(level, float) for level in usual.window)
    assert attrs.evolve(usual, grow=-3).grow == -3


@pytest.mark.parametrize(("field", "value"), [("model", ""), ("blocks", 0), ("heads", -2), ("head_dim", 1.5)])
def test_a_bank_needs_a_whole_fingerprint(field: str, value: object) -> None:
    bank = make_bank()
    with pytest.raises(ConceptMismatch, match=rf"fingerprint\.{field}: expected "):
        attrs.evolve(bank, fingerprint=attrs.evolve(bank.fingerprint, **{field: value}))


def test_a_saved_bank_has_the_mode_that_the_umask_allows(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = make_bank().save(tmp_path / "x.safetensors")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640
