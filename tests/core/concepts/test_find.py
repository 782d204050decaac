"""Looking concepts up: a file, a name in the folder, one that an installed package ships; nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from runner import make_bank

from uvr_core import ConceptMismatch
from uvr_core.concepts import resolve


def test_names_are_looked_up_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make_bank("found").save(tmp_path / "weapon.safetensors")
    monkeypatch.delenv("UVR_CONCEPTS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConceptMismatch, match=r"'weapon'.*UVR_CONCEPTS"):
        resolve("weapon")
    assert resolve("weapon", tmp_path)[0][0].name == "found"
    monkeypatch.setenv("UVR_CONCEPTS", str(tmp_path))
    assert resolve("flux-weapon")[0][0].name == "weapon", "a concept that an installed package ships"
    assert resolve(["weapon", file])[1][0].name == "found"
    bank = make_bank("own")
    assert resolve({"weapon": "block", bank: "uvr"})[1] == (bank, "uvr")
    assert resolve(bank) == [(bank, None)]
    assert resolve(None) == []
    with pytest.raises(ConceptMismatch, match=r"'weapn'.*did you mean 'weapon'"):
        resolve("weapn")
    with pytest.raises(ConceptMismatch, match="expected a path, a ConceptBank or a list"):
        resolve(7)
    with pytest.raises(ConceptMismatch, match="expected a path, a name or a ConceptBank"):
        resolve([7])
