"""Whether the promises hold on a GPU: the zoo's pipelines there, and one JSON of what came out. A minute.

    python tools/gpu/check_gpu.py [--out out/gpu] [--pipelines flux,sd3,...] [--images 8]
    python tools/gpu/check_gpu.py --device cpu --dtypes float32 --images 2 --steps 8       whether the script runs

For every pipeline, in float32 and bfloat16: stock draws the same bits twice; with the weapon concept attached, harmless
prompts in which nothing is located come out as stock's, bit for bit, and weapons that the judge sees in stock's
pictures are gone; detached, the pipeline is stock again, bit for bit. Then FLUX with compiled blocks, and with
accelerate's offload, against the same pictures drawn plainly.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image

import uvr_core
from uvr_core.sampling import Sampling
from uvr_zoo import concepts, judge, load
from uvr_zoo.recipes import RECIPES
from uvr_zoo.tasks import benign_tasks, cases, prompt_of, settings, sources_of, unsafe_tasks
from uvr_zoo.vocabulary import CONCEPTS

CONCEPT, FIRST = "weapon", 50_000  # tasks from that seed on
Pictures = list[np.ndarray]


@attrs.frozen(eq=False)
class Tasks:
    """What is drawn of a pipeline: as many harmless tasks as ones that ask for the concept."""

    name: str
    harmless: Sequence[Any]
    unsafe: Sequence[Any]
    steps: int | None

    def sampling(self, tasks: Sequence[Any]) -> Sampling:
        options = {**settings(self.name), "output_type": "np"}
        if self.steps is not None:
            options["num_inference_steps"] = self.steps
        seeds = range(50_000, 50_000 + len(tasks))
        return Sampling([prompt_of(t) for t in tasks], seeds, {"image": sources_of(tasks)}, options, len(tasks))


def draw(pipe: Any, tasks: Tasks, which: str, regulator: Any = None) -> tuple[Pictures, list[bool]]:
    """Pictures (H, W, 3) in [0, 1], and which of them had the concept located."""
    (drawn,) = tasks.sampling(getattr(tasks, which)).draw(pipe, regulator)
    finding = drawn.report.findings if drawn.report is not None else []
    return drawn.images, [one.located for one in finding]


def equal(first: Pictures, second: Pictures) -> list[bool]:
    """Which pictures are the same, bit for bit."""
    return [bool(np.array_equal(a, b)) for a, b in zip(first, second, strict=True)]


def unsafe(pictures: Pictures) -> list[bool]:
    """In which pictures the judge sees an object of the concept."""
    seen = judge()([picture_of(picture) for picture in pictures])
    return [any(name in CONCEPTS[CONCEPT] for name in objects) for objects in seen]


def picture_of(picture: np.ndarray) -> Image.Image:
    return Image.fromarray((picture * 255).round().astype("uint8"))


def promises(pipe: Any, tasks: Tasks) -> dict[str, Any]:
    """Counts for a pipeline as it stands."""
    harmless, asked = (draw(pipe, tasks, which)[0] for which in ("harmless", "unsafe"))
    again = draw(pipe, tasks, "harmless")[0]
    with uvr_core.attach(pipe, concepts=concepts(tasks.name, CONCEPT)) as regulator:
        kept, located = draw(pipe, tasks, "harmless", regulator)
        regulated, caught = draw(pipe, tasks, "unsafe", regulator)
    detached = draw(pipe, tasks, "unsafe")[0]
    shown, left = unsafe(asked), unsafe(regulated)
    same = equal(kept, harmless)
    return {
        "stock_twice": sum(equal(again, harmless)),
        "images": len(harmless),
        "harmless_located": sum(located),
        "harmless_not_located": len(located) - sum(located),
        "harmless_bitwise": sum(s for s, looked in zip(same, located, strict=True) if not looked),
        "unsafe_shown_by_stock": sum(shown),
        "unsafe_located": sum(caught),
        "unsafe_erased": sum(s and not r for s, r in zip(shown, left, strict=True)),
        "detached_bitwise": sum(equal(detached, asked)),
    }


def against(pipe: Any, tasks: Tasks, change: Callable[[Any], Any]) -> dict[str, Any]:
    """The same regulated pictures after a change of the pipeline: located the same, erased, largest difference."""
    concept = concepts(tasks.name, CONCEPT)
    with uvr_core.attach(pipe, concepts=concept) as regulator:
        plain, plainly = draw(pipe, tasks, "unsafe", regulator)
    change(pipe)
    with uvr_core.attach(pipe, concepts=concept) as regulator:
        changed, located = draw(pipe, tasks, "unsafe", regulator)
    return {
        "images": len(plain),
        "located_alike": sum(a == b for a, b in zip(plainly, located, strict=True)),
        "unsafe_left": [sum(unsafe(plain)), sum(unsafe(changed))],
        "largest_difference": float(max(np.abs(a - b).max() for a, b in zip(plain, changed, strict=True))),
    }


def tasks_of(name: str, images: int, steps: int | None) -> Tasks:
    case = next(case for case in cases(name) if case.concept == CONCEPT)
    return Tasks(name, benign_tasks(name, images, FIRST), unsafe_tasks(name, case, images, FIRST), steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--pipelines", default=",".join(RECIPES))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, help="instead of each pipeline's own number")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    results: dict[str, Any] = {"torch": torch.__version__, "uvr": uvr_core.__version__, "rows": {}}
    if args.device == "cuda":
        results["device"] = torch.cuda.get_device_name()
    rows = results["rows"]

    def note(title: str, work: Callable[[], dict[str, Any]]) -> None:
        rows[title] = work()
        print(title, json.dumps(rows[title]), flush=True)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "check.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")

    for name in args.pipelines.split(","):
        tasks = tasks_of(name, args.images, args.steps)
        for dtype in args.dtypes.split(","):
            pipe = load(name).to(args.device, getattr(torch, dtype))
            note(f"{name}, {dtype}", lambda pipe=pipe, tasks=tasks: promises(pipe, tasks))
    tasks = tasks_of("flux", args.images, args.steps)
    compiled: dict[str, Any] = {"fullgraph": True} | ({} if args.device == "cuda" else {"backend": "eager"})
    note(
        "flux, compiled blocks",
        lambda: against(
            load("flux").to(args.device), tasks, lambda pipe: pipe.transformer.compile_repeated_blocks(**compiled)
        ),
    )
    if args.device == "cuda":
        note("flux, offload", lambda: against(load("flux").to("cuda"), tasks, offload))


def offload(pipe: Any) -> None:
    pipe.to("cpu")
    pipe.enable_model_cpu_offload()


if __name__ == "__main__":
    main()
