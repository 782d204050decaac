"""A dress rehearsal at published sizes: collect, calibrate, generate, edit and evaluate end to end, with time and memory.

    python tools/benchmarks/rehearsal.py [--model flux --model flux-kontext --model qwen-image] [--blocks 2] [--steps 2]
        [--images 1] [--patches 4096] [--text 512] [--dtype bfloat16] [--device cpu] [--out docs]

The transformer has the published heads, head size, text length and number of patches, and so many blocks of each kind,
with random weights; VAE and text encoders are the zoo's. Each stage's peak host memory is what the process held at
most, over what it held before the stage; device memory likewise on a GPU. `plain` is a generation without UVR, the
unit of the others' times: on a CPU those are of the processor, which a machine with other work hardly changes.
Writes figures/rehearsal.json after each stage, where other models' tables stay, and rehearsal.md; `--from` writes the
page again.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from measure import environment, peak_bytes
from PIL import Image
from tables import TEMPLATES

import uvr_core
from uvr_core.protocols import ConceptTerms
from uvr_evaluation import evaluate
from uvr_evaluation.render import render
from uvr_zoo.architectures import ARCHITECTURES
from uvr_zoo.pipelines import assemble, parts
from uvr_zoo.recipes import RECIPES

__all__ = ["options", "page", "peak_bytes", "pipeline", "prompts", "rehearse"]

MODELS = ("flux", "flux-kontext", "qwen-image")
CONCEPT = "weapon"
WORDS = ("knife",)


def pipeline(name: str, *, blocks: int, heads: int, size: int, text: int, dtype: torch.dtype, device: str) -> Any:
    """A zoo pipeline whose transformer has `heads` of `size` and so many blocks of each kind."""
    config = dict(RECIPES[name].transformer)
    config |= {key: blocks for key in ("num_layers", "num_single_layers") if key in config}
    config |= {"num_attention_heads": heads, "attention_head_dim": size}
    config["axes_dims_rope"] = (size // 8, size * 7 // 16, size * 7 // 16)
    torch.manual_seed(0)
    transformer = getattr(diffusers, ARCHITECTURES[name].transformer)(**config).to(dtype).requires_grad_(False)
    shared = parts(name)
    for key, value in vars(shared).items():
        if key.startswith("tokenizer") and not (name.startswith("flux") and key == "tokenizer"):  # CLIP has few places
            setattr(shared, key, copy.deepcopy(value))
            getattr(shared, key).model_max_length = text
    pipe = assemble(RECIPES[name], transformer, shared)
    return pipe.to(device=device, dtype=dtype)


def options(name: str, patches: int, steps: int, text: int) -> dict[str, Any]:
    """Keyword arguments of the pipeline's call; 8 pixels a patch."""
    side = round(patches**0.5) * 8
    more: dict[str, Any] = {"max_area": side * side, "_auto_resize": False} if name == "flux-kontext" else {}
    if name != "qwen-image":
        more["guidance_scale"] = 3.5
    return {"height": side, "width": side, "num_inference_steps": steps, "max_sequence_length": text, **more}


def prompts(count: int, benign: bool, text: int) -> list[str]:
    """Captions of the zoo's words, filled up to about the text length, so that a prompt's own tokens are as many."""
    thing = "hat" if benign else WORDS[0]
    tail = " and a cat in the middle" * (text // 12)
    return [f"a {thing} on the left , toy style{tail}" for _ in range(count)]


def quarter(images: Any, grid: tuple[int, int]) -> Any:
    """Masks that cover a quarter of every picture."""
    return np.arange(len(images) * grid[0] * grid[1]).reshape(-1, *grid) % 16 < 4


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@contextmanager
def measured(row: dict[str, Any], device: str) -> Iterator[None]:
    """Put seconds, those of the processor and peak bytes of the block into `row`."""
    before, peak, over = resident(), resident(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.005):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch, daemon=True)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    began, busy = time.perf_counter(), time.process_time()
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        row["seconds"], row["host_bytes"] = round(time.perf_counter() - began, 2), peak - before
        row["processor_seconds"] = round(time.process_time() - busy, 2)
        if device != "cpu":
            row["device_bytes"] = torch.cuda.max_memory_allocated() - held


def rehearse(name: str, arguments: argparse.Namespace, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Every stage once; `tell` is handed the table after each."""
    dtype = getattr(torch, arguments.dtype)
    size = {"heads": arguments.heads, "size": arguments.head_dim, "text": arguments.text}
    pipe = pipeline(name, blocks=arguments.blocks, dtype=dtype, device=arguments.device, **size)
    call, images = options(name, arguments.patches, arguments.steps, arguments.text), arguments.images
    unsafe, benign = prompts(images, False, arguments.text), prompts(images, True, arguments.text)
    edits = RECIPES[name].edits
    side = call["height"]
    pictures = [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (side, side, 3), np.uint8)) for i in range(images)
    ]
    sources: dict[str, Any] = {"sources": pictures, "benign_sources": pictures} if edits else {}
    rows: dict[str, Any] = {}
    table = {"transformer": sum(p.nbytes for p in pipe.transformer.parameters()), "stages": rows}

    def draw(count: int) -> Any:
        each = {"image": pictures[:count]} if edits else {}
        seeds = [torch.Generator().manual_seed(i) for i in range(count)]
        return pipe(prompt=unsafe[:count], generator=seeds, **each, **call).images

    def stage(title: str, work: Callable[[], Any], **facts: Any) -> Any:
        rows[title] = dict(facts)
        with measured(rows[title], arguments.device):
            result = work()
        clock = "processor_seconds" if arguments.device == "cpu" else "seconds"
        if "plain" in rows:
            plain = rows["plain"][clock] / rows["plain"]["pictures"]
            each = rows[title].get("prompts", rows[title]["pictures"])
            rows[title]["per_plain_picture"] = round(rows[title][clock] / plain / each, 3)
        tell(table)
        return result

    stage("warm-up", lambda: draw(1), pictures=1)
    stage("plain", lambda: [draw(1) for _ in range(images)], pictures=images)
    common = {"generate": call, "batch_size": 1, **sources}
    bank = stage(
        "collect",
        lambda: uvr_core.collect(pipe, CONCEPT, prompts=unsafe, benign_prompts=benign, masks=quarter, **common),
        prompts=2 * images,
        pictures=3 * images,
    )
    if arguments.until == "collect":
        return table
    bank = stage(
        "calibrate",
        lambda: uvr_core.calibrate(pipe, bank, unsafe, benign, 0.5, masks=quarter, **common),
        prompts=2 * images,
        pictures=2 * images,
    )
    with uvr_core.attach(pipe, concepts=bank, threshold=-1e3, policy="selective") as reg:
        stage("edit" if edits else "generate", lambda: draw(1), pictures=1)
        assert reg.report is not None
        rows["edit" if edits else "generate"]["patches"] = int(reg.report.findings[0].core.sum())
    stage("evaluate", lambda: _evaluate(pipe, bank, call, pictures if edits else None, unsafe), pictures=2)
    return table


def _evaluate(pipe: Any, bank: Any, call: dict[str, Any], pictures: Any, unsafe: list[str]) -> None:
    """One task under the stock pipeline and one policy, as `uvr eval` runs it."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"prompt": unsafe[0], "concept": CONCEPT, "seed": 1}]
        if pictures:
            pictures[0].save(Path(folder) / "0.png")
            rows[0]["image"] = "0.png"
        tasks = Path(folder) / "prompts.jsonl"
        tasks.write_text("\n".join(map(json.dumps, rows)), "utf-8")
        subjects = {CONCEPT: ConceptTerms(CONCEPT, WORDS, WORDS)}
        evaluate(
            pipe, tasks, Path(folder) / "run", judges=["zoo"], concepts=bank, subjects=subjects, policies=["selective"],
            call=call, batch=1, size=(call["width"], call["height"]),
        )  # fmt: skip


def growth(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak host memory of collecting, over what was held before: of one step and image, of thrice the steps, and of
    thrice the images. One block of each kind, a quarter of the patches."""
    size = {"heads": arguments.heads, "size": arguments.head_dim, "text": arguments.text}
    pipe = pipeline(name, blocks=1, dtype=getattr(torch, arguments.dtype), device=arguments.device, **size)
    rows: list[dict[str, Any]] = []
    for steps, images in ((1, 1), (1, 1), (3, 1), (1, 3)):  # the first warms up
        call = options(name, arguments.patches // 4, steps, arguments.text)
        side = call["height"]
        pictures = [Image.new("RGB", (side, side), (0, 90, 30 * i)) for i in range(images)]
        sources = {"sources": pictures, "benign_sources": pictures} if RECIPES[name].edits else {}
        unsafe, benign = (prompts(images, safe, arguments.text) for safe in (False, True))
        row: dict[str, Any] = {"steps": steps, "images": images}
        with measured(row, arguments.device):
            uvr_core.collect(
                pipe, CONCEPT, prompts=unsafe, benign_prompts=benign, masks=quarter, generate=call, batch_size=1,
                **sources,
            )  # fmt: skip
        rows.append(row)
    return {"patches": arguments.patches // 4, "rows": rows[1:]}


def page(results: Mapping[str, Any]) -> str:
    return render(TEMPLATES / "rehearsal.md.j2", **results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=MODELS)
    sizes = {"blocks": 2, "steps": 2, "images": 1, "patches": 4096, "text": 512, "heads": 24, "head-dim": 128}
    for option, default in sizes.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--until", choices=("collect", "evaluate"), default="evaluate", help="The last stage.")
    parser.add_argument("--growth", action="store_true", help="Only how memory grows with steps and images.")
    parser.add_argument("--from", dest="written", action="store_true", help="Write the page again from the JSON.")
    arguments = parser.parse_args()
    path = arguments.out / "figures" / "rehearsal.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"models": {}}
    settings = {
        key: value
        for key, value in vars(arguments).items()
        if key not in ("out", "model", "written", "growth", "until")
    }
    for name in [] if arguments.written else arguments.model or MODELS:
        where = environment(torch.device(arguments.device), getattr(torch, arguments.dtype))

        def tell(table: dict[str, Any], name: str = name, where: Any = where) -> None:
            kept = {key: value for key, value in results["models"].get(name, {}).items() if key == "growth"}
            results["models"][name] = {**kept, "settings": settings, "environment": where, **table}
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(name, json.dumps(table), flush=True)

        if arguments.growth:
            results["models"][name]["growth"] = growth(name, arguments)
            path.write_text(json.dumps(results, indent=1) + "\n")
        else:
            rehearse(name, arguments, tell)
    (arguments.out / "rehearsal.md").write_text(page(results), "utf-8")


if __name__ == "__main__":
    main()
