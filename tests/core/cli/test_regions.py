"""`--masks`: a judge that points, or a folder of PNGs."""

from __future__ import annotations

import json

from commands import FAST, PROBE, Pointer, ran, refused, registered
from PIL import Image

import uvr_core
from uvr_core.cli.regions import MaskFolder


def test_collect_from_a_folder_of_masks(checkpoint, prompts, tmp_path):
    folder, bank = tmp_path / "masks", tmp_path / "weapon.safetensors"
    folder.mkdir()
    for number, box in enumerate(((0, 0, 32, 32), (32, 32, 64, 64), (0, 0, 0, 0))):
        mask = Image.new("L", (64, 64))
        mask.paste(255, box)
        mask.save(folder / f"{number}.png")
    arguments = ("collect", checkpoint, "weapon", "--prompts", prompts, "--masks", folder, *FAST, "--batch", 2)
    data = json.loads(ran(*arguments, "--out", bank, "--json").stdout)
    assert data["provenance"]["images_with_concept"] == 2
    assert len(uvr_core.load_concepts(bank).tensor("anchors", PROBE)) == 2 * 16
    (folder / "2.png").unlink()
    assert "expected 3 PNG masks" in refused(*arguments, "--out", bank)
    (folder / "2.png").write_text("no image")
    assert "2.png" in refused(*arguments, "--out", bank)


def test_masks_are_read_in_order_and_by_area(tmp_path):
    for number in range(3):
        mask = Image.new("L", (10, 10))
        mask.paste(255, (0, 0, 5, 5) if number == 1 else (0, 0, 2, 2))
        mask.save(tmp_path / f"{number}.png")
    masks = MaskFolder.open(tmp_path, 3)
    assert masks([None], (2, 2)).tolist() == [[[False, False], [False, False]]]
    assert masks([None, None], (2, 2)).sum((1, 2)).tolist() == [1, 0]


def test_bad_mask_sources(checkpoint, prompts, tmp_path):
    bank = tmp_path / "weapon.safetensors"
    arguments = ("collect", checkpoint, "weapon", "--prompts", prompts, *FAST, "--out", bank)
    with registered(uvr_judges={"pointer": Pointer, "blind": lambda: len}):
        assert "did you mean 'pointer'?" in refused(*arguments, "--masks", "ponter:knife")
        assert "has no locate" in refused(*arguments, "--masks", "blind:knife")
        assert "cannot locate gun" in refused(*arguments, "--masks", "pointer:gun")
        assert "cannot locate weapon" in refused(*arguments, "--masks", "pointer")
    assert not bank.exists()
