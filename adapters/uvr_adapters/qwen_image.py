"""Qwen-Image, Qwen-Image-Edit and Edit-Plus: all that UVR knows about them.

Joint order: text, output, references. Every block is double-stream. `img_shapes` holds, per sample, the (frames,
rows, columns) of the output and of each source image, in patches; the ControlNet pipelines give the output's alone,
unnested. Padded text is masked. The time argument is sigma = t / 1000. With true_cfg_scale > 1 and a negative prompt
two passes run, named "cond" and "uncond".
"""

from __future__ import annotations

from uvr_core.adapter import Adapter, Arguments, Layout
from uvr_core.errors import AdapterMismatch

from .arguments import of_all_samples, sigma, text


def layout(arguments: Arguments) -> Layout:
    sizes = arguments["img_shapes"]
    each = (tuple(tuple(s) for s in (sample if hasattr(sample[0], "__len__") else [sample])) for sample in sizes)
    (frames, height, width), *references = shapes = of_all_samples("qwen-image", each)
    if frames != 1 or any(shape[0] != 1 for shape in references):
        raise AdapterMismatch(f"qwen-image: expected pictures, got several frames: {shapes}")
    return Layout((height, width), tuple((rows, columns) for _, rows, columns in references))


QWEN_IMAGE = Adapter(
    name="qwen-image",
    model="QwenImageTransformer2DModel",
    attention=("transformer_blocks.*.attn",),
    layout=layout,
    time=sigma,
    text=text,
    image_at="end",
    guidance="two_pass",
    tokenizers=("tokenizer",),
    pipelines=(
        *("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
        *("QwenImageEditPipeline", "QwenImageEditPlusPipeline", "QwenImageEditInpaintPipeline"),
    ),
    edits=("QwenImageEditPipeline",),
)
