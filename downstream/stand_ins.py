"""Stand-ins for the small checkpoints that diffusers' tests take from the Hub, built from configurations alone.

They are laid out as a cache of the Hub, so that `from_pretrained("hf-internal-testing/...")` finds them offline and
nothing has to be replaced.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from transformers import (
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    T5Config,
    T5Tokenizer,
)
from transformers.utils import is_torchvision_available

OWNER, REVISION = "hf-internal-testing", "0" * 40
# Ids that the tests' configurations of Qwen2.5-VL name.
QWEN_IDS = {
    "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652,
    "<|vision_end|>": 151653, "<|vision_pad|>": 151654, "<|image_pad|>": 151655, "<|video_pad|>": 151656,
}  # fmt: skip


def build(cache: Path) -> Path:
    """Write every stand-in into a cache folder of the Hub; returns the folder."""
    t5 = _snapshot(cache, "tiny-random-t5")
    T5Config(
        vocab_size=1103, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, relative_attention_num_buckets=8,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    ).save_pretrained(t5)  # fmt: skip
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(i), -3.0) for i in range(33, 127))]
    T5Tokenizer(vocab=pieces).save_pretrained(t5)

    letters = _byte_letters()
    specials = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    words = specials | {word: i for i, word in enumerate([*letters, *(f"{c}</w>" for c in letters)], len(specials))}
    CLIPTokenizer(vocab=words, merges=[], model_max_length=77).save_pretrained(_snapshot(cache, "tiny-random-clip"))

    qwen = _snapshot(cache, "tiny-random-Qwen2VLForConditionalGeneration")
    tokenizer = Qwen2Tokenizer(vocab={letter: i for i, letter in enumerate(letters)} | QWEN_IDS, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": [name for name in QWEN_IDS if name != "<|endoftext|>"]})
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == QWEN_IDS["<|image_pad|>"]
    pictures_alone()
    images = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    Qwen2VLProcessor(images, tokenizer).save_pretrained(qwen)
    Qwen2VLConfig().save_pretrained(qwen)
    return cache


def pictures_alone() -> None:
    """Qwen's processor without its video half, which needs torchvision: for this process."""
    if not is_torchvision_available():
        Qwen2VLProcessor.get_attributes = classmethod(lambda cls: ["image_processor", "tokenizer"])


def small_pictures(side: int = 64) -> None:
    """Qwen-Image editing pipelines of this process bring sources to side x side pixels, not to 1024 x 1024.

    The size is a number in their code, and a call at it takes minutes on a CPU.
    """
    for name in ("", "_inpaint", "_plus"):
        module = importlib.import_module(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_edit{name}")
        stock = module.calculate_dimensions
        module.calculate_dimensions = lambda area, ratio, stock=stock: stock(min(area, side * side), ratio)


def _snapshot(cache: Path, name: str) -> Path:
    """The folder of a checkpoint's one revision, which is its main branch."""
    repository = cache / f"models--{OWNER}--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    folder = repository / "snapshots" / REVISION
    folder.mkdir(parents=True)
    return folder


def _byte_letters() -> list[str]:
    """The 256 letters that byte-level tokenizers write for bytes: printable ones for themselves, others from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (chr(256 + i) for i in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]
