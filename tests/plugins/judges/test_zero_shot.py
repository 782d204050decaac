"""clipseg, grounding-dino and sam2, on small random models of transformers' own classes, from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from uvr_core import PluginError
from uvr_core.cli.regions import mask_source
from uvr_core.testing import check_judge
from uvr_plugins.judges import ClipSeg, GroundingDino, Sam2

IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8)) for i in range(3)]


def save_clipseg(path: Path) -> None:
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer({token: index for index, token in enumerate(tokens)}, [])
    tokenizer.model_max_length = 16
    last, small = len(tokens) - 1, {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = transformers.CLIPSegConfig(
        text_config={**small, "vocab_size": len(tokens), "num_hidden_layers": 1, "max_position_embeddings": 16,
                     "bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last},
        vision_config={**small, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8},
        projection_dim=16, reduce_dim=8, extract_layers=[0, 1, 2], decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )  # fmt: skip
    transformers.CLIPSegForImageSegmentation(config).save_pretrained(path)
    pictures = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    transformers.CLIPSegProcessor(pictures, tokenizer).save_pretrained(path)


def save_dino(path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "pistol", "knife"]
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=transformers.BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=64,
        ),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=8, max_text_len=32,
    )  # fmt: skip
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(path)
    pictures = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    tokenizer = transformers.BertTokenizer({word: index for index, word in enumerate(words)})
    transformers.GroundingDinoProcessor(pictures, tokenizer).save_pretrained(path)


def save_sam2(path: Path) -> None:
    stages = [8, 16, 32, 64]
    config = transformers.Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64],
                "blocks_per_stage": [1, 1, 1, 1], "embed_dim_per_stage": stages, "global_attention_blocks": [0],
                "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [8, 4, 4, 2],
                "window_positional_embedding_background_size": [2, 2],
            },
            "backbone_channel_list": stages[::-1], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 16,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16},
        mask_decoder_config={
            "hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16, "iou_head_hidden_dim": 16,
            "num_hidden_layers": 1,
        },
    )  # fmt: skip
    transformers.Sam2Model(config).save_pretrained(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, save in (("clipseg", save_clipseg), ("dino", save_dino), ("sam2", save_sam2)):
            save(root / name)
    return {name: str(root / name) for name in ("clipseg", "dino", "sam2")}


@pytest.fixture(scope="module")
def judges(folders: dict[str, str]) -> dict[str, Any]:
    boxes = GroundingDino(threshold=0.0, labels=("pistol",), model=folders["dino"])
    return {
        "clipseg": ClipSeg(threshold=0.4, labels=("pistol", "knife"), model=folders["clipseg"]),
        "grounding-dino": boxes,
        "sam2": Sam2(boxes=boxes, model=folders["sam2"]),
    }


@pytest.mark.parametrize("name", ["clipseg", "grounding-dino", "sam2"])
def test_they_keep_the_contract(name: str, judges: dict[str, Any]) -> None:
    check_judge(judges[name], images=IMAGES)


def test_a_map_is_read_by_its_label_and_a_quarter_of_a_patch_counts(judges: dict[str, Any]) -> None:
    judge = judges["clipseg"]
    maps = judge.maps(IMAGES[0], ["pistol", "knife"])
    assert maps.shape == (2, 32, 32)
    assert ((maps > 0) & (maps < 1)).all()
    median = float(maps[0].median())
    half = ClipSeg(threshold=median, labels=("pistol",), model=judge.model)
    share = torch.nn.functional.avg_pool2d((maps[:1] > median).float(), 8)[0]
    assert torch.equal(half.locate(IMAGES[:1], ["pistol"], (4, 4))[0], share >= 0.25)
    assert judge(IMAGES)[0].keys() <= {"pistol", "knife"}
    assert ClipSeg(model=judge.model)(IMAGES) == [{}] * 3


def test_boxes_become_patches(judges: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    box = torch.tensor([[0.0, 0.0, 31.6, 24.0], [60.0, 40.0, 200.0, 90.0]])
    told = box, torch.tensor([0.9, 0.2])
    judge = GroundingDino(threshold=0.5, labels=("pistol",), model=judges["grounding-dino"].model)
    monkeypatch.setattr(GroundingDino, "boxes", lambda self, image, label: told)
    mask = judge.locate(IMAGES[:1], ["pistol"], (6, 8))[0]
    assert mask[:3, :4].all()
    assert mask.sum() == 12
    assert judge(IMAGES[:1]) == [{"pistol": pytest.approx(0.9)}]
    monkeypatch.setattr(GroundingDino, "boxes", lambda self, image, label: (torch.zeros(0, 4), torch.zeros(0)))
    assert not judge.locate(IMAGES[:1], ["pistol"], (6, 8)).any()
    assert judge(IMAGES[:1]) == [{}]
    assert not Sam2(boxes=judge, model=judges["sam2"].model).locate(IMAGES[:1], ["pistol"], (6, 8)).any()


def test_boxes_are_handed_to_sam2_on_its_own_raster(judges: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    judge, shown = judges["sam2"], []
    forward = judge._net.forward

    def spy(**inputs: Any) -> Any:
        shown.append(inputs)
        return forward(**inputs)

    boxes = torch.tensor([[16.0, 12.0, 32.0, 24.0]])
    monkeypatch.setattr(GroundingDino, "seen", lambda self, image, labels: boxes)
    monkeypatch.setattr(judge._net, "forward", spy)
    judge.locate(IMAGES[:1], ["pistol"], (6, 8))
    assert shown[0]["input_boxes"].tolist() == [[[16.0, 16.0, 32.0, 32.0]]]  # 64 x 48 pixels onto 64 x 64
    assert shown[0]["pixel_values"].shape == (1, 3, 64, 64)


def test_the_command_line_names_labels_and_weights(folders: dict[str, str]) -> None:
    source, word = mask_source(f"clipseg={folders['clipseg']}:pistol,knife", "weapon", 2)
    assert word == "judge clipseg: pistol, knife"
    assert callable(source)
    assert source(IMAGES[:2], (8, 8)).shape == (2, 8, 8)


@pytest.mark.parametrize("kind", [ClipSeg, GroundingDino])
def test_weights_that_are_not_there_are_named_with_the_remedy(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"cannot load .*name a folder that holds it"):
        kind(model=str(tmp_path / "none")).locate(IMAGES[:1], ["pistol"])
