"""What regulation costs on a GPU, at published sizes: one script, under six minutes, one JSON and one page.

    python tools/gpu/measure_gpu.py [--out out/gpu] [--models flux,kontext,qwen-image] [--turns 5] [--eager]
    python tools/gpu/measure_gpu.py --dry-run        small, on the CPU, uncompiled code: whether the script runs

FLUX.1-dev's transformer, the same with a reference image as Kontext has it, and Qwen-Image's; random weights,
bfloat16, 1024 x 1024, 512 text tokens, one forward at a time. Variants run in turns, and a ratio is taken within a
turn: stock, idle (a concept is looked for in the first probe block and never located), `uvr` and `selective` on 10% of
the patches, `selective(kept=True)` in a step after the one that chose its tokens, and the same with compiled blocks.
For each: seconds a forward, peak memory, kernels and host syncs as the profiler counts them, and which kernels take
longest beyond stock's. Parts that would begin after --minutes are left out, and named.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import attrs
import diffusers
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from measure import counted, environment, interleaved, peak_bytes, ratio
from sizes import NEVER, SIGMA, bank, blob, policy

import uvr_core
from uvr_core.engine.lookup import find_adapter, fingerprint
from uvr_plugins.detectors import Oracle
from uvr_plugins.policies import Selective

SHARE = 0.10
SMALL: dict[str, dict[str, Any]] = {
    "flux": {
        "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 32, "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6),
    },
    "qwen-image": {
        "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32,
        "axes_dims_rope": (4, 6, 6),
    },
}  # fmt: skip
BARS = (  # (what, variant, of, at most)
    ("idle", "idle", "stock", 1.005),
    ("`selective` on 10%", "selective", "stock", 1.02),
    ("`selective` on 10%, tokens known", "selective, tokens known", "stock", 1.01),
    ("compiled, `selective` on 10%", "compiled selective", "compiled stock", 1.03),
)
VARIANTS = {"idle": None, "uvr": "uvr", "selective": "selective", "selective, tokens known": "kept"}
SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@attrs.frozen
class Case:
    """A transformer with random weights, and the arguments of one forward."""

    name: str
    model: Any
    inputs: dict[str, Any]
    side: int  # patches along the picture's edge


def build(name: str, device: torch.device, dtype: torch.dtype, small: bool) -> Case:
    """`flux` (dev), `kontext` (the same weights, a reference of the picture's size beside it), `qwen-image`."""
    side, text = (8, 12) if small else (64, 512)
    family = "qwen-image" if name == "qwen-image" else "flux"
    config = SMALL[family] if small else {}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            if family == "flux":
                model: nn.Module = diffusers.FluxTransformer2DModel(guidance_embeds=True, **config)
            else:
                model = diffusers.QwenImageTransformer2DModel(**config)
    finally:
        torch.set_default_dtype(before)
    model = model.to(device, dtype).eval().requires_grad_(False)
    widths, options = model.config, {"device": device, "dtype": dtype}
    images = 2 if name == "kontext" else 1
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(1, images * side * side, widths.in_channels, **options),
        "encoder_hidden_states": torch.randn(1, text, widths.joint_attention_dim, **options),
        "timestep": torch.full((1,), SIGMA, **options),
        "return_dict": False,
    }
    if family == "flux":
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        ids = [torch.stack([torch.full_like(rows, i), rows, columns], -1).reshape(-1, 3) for i in range(images)]
        inputs |= {
            "pooled_projections": torch.randn(1, widths.pooled_projection_dim, **options),
            "guidance": torch.full((1,), 3.5, **options),
            "img_ids": torch.cat(ids).to(**options),
            "txt_ids": torch.zeros(text, 3, **options),
        }
    else:
        inputs["img_shapes"] = [[(1, side, side)]]
    return Case(name, model, inputs, side)


@contextmanager
def regulated(case: Case, name: str | None) -> Iterator[None]:
    """Attached; a share of the patches is located in the first probe block under that policy; None: none ever is."""
    adapter = find_adapter(case.model)
    probe = adapter.probe_paths(case.model)[0]
    concept = bank(fingerprint(case.model, adapter.taps(case.model)), probe)
    chosen: dict[str, Any] = {"policy": "uvr", "detector": "anchor", "threshold": NEVER}
    if name is not None:
        which = Selective(kept=True) if name == "kept" else policy(name)
        chosen = {"policy": which, "detector": Oracle(blob((case.side, case.side), SHARE, 1)[None])}
    with uvr_core.attach(case.model, concepts=concept, **chosen) as reg, reg.generation():
        if name == "kept":  # what is read once for the same masks has been read
            case.model(**case.inputs)
        yield
        report = reg.report
        assert report is None or not report.findings or report.findings[0].located == (name is not None)


def profiled(work: Callable[[], Any], device: torch.device, compiled: bool) -> dict[str, Any]:
    """Kernels and host syncs of one forward: by CUDA's profiler, or on the CPU as operations are counted, if eager."""
    if device.type != "cuda" and compiled:  # Dynamo runs under no such counter
        return {"kernels": None, "host_syncs": None}
    if device.type != "cuda":
        with counted() as (watch, syncs):
            work()
        return {"kernels": watch.kernels.total(), "host_syncs": watch.syncs.total() + syncs.calls.total()}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(device)
    names = [event.name for event in profiler.events()]
    return {
        "kernels": sum(name.startswith(("cudaLaunchKernel", "cuLaunchKernel")) for name in names),
        "host_syncs": sum(name in SYNCS for name in names) - 1,  # ours, at the end
        "by_kernel": {
            event.key: [event.self_device_time_total / 1e3, event.count]
            for event in profiler.key_averages()
            if event.device_type == torch.autograd.DeviceType.CUDA
        },
    }


def beyond(row: dict[str, Any], stock: dict[str, Any], most: int = 8) -> list[tuple[str, float, int]]:
    """The kernels that take the most time beyond stock's: name, milliseconds, how many more; on a GPU."""
    base = stock.get("by_kernel", {})
    more = [
        (name, took - base.get(name, (0.0, 0))[0], count - base.get(name, (0.0, 0))[1])
        for name, (took, count) in row.get("by_kernel", {}).items()
    ]
    return sorted(more, key=lambda line: -line[1])[:most]


def measured(case: Case, contexts: dict[str, Any], turns: int, device: torch.device) -> dict[str, Any]:
    """{variant: ratio to the first one, seconds, peak, counts}."""

    def work() -> Any:
        return case.model(**case.inputs)

    stock = next(iter(contexts))
    taken = interleaved({name: (context, work) for name, context in contexts.items()}, turns, device)
    table: dict[str, Any] = {}
    for name, context in contexts.items():
        table[name] = ratio(taken, name, stock)
        with context():
            work()  # in a step of its own, so that what is counted is no first step
            table[name]["peak_bytes"] = peak_bytes(work, device)
            table[name] |= profiled(work, device, name.startswith("compiled"))
        print(f"  {name}: {table[name]['median']:.4f}, {1e3 * table[name]['seconds']:.1f} ms", flush=True)
    return table


@torch.no_grad()
def measure(
    names: Sequence[str], device: torch.device, *, small: bool, turns: int, minutes: float, eager: bool = False
) -> dict[str, Any]:
    """Everything, as far as the time goes; `eager`: nothing compiled."""
    began, results, left_out = time.perf_counter(), {}, []
    dtype = torch.float32 if small else torch.bfloat16
    for name in names:
        case: Case | None = None
        for compiled in (False,) if eager else (False, True):
            title = f"{name}{', compiled' if compiled else ''}"
            if time.perf_counter() - began > 60 * minutes:
                left_out.append(title)
                continue
            print(title, flush=True)
            case = case or build(name, device, dtype, small)
            if compiled:
                case.model.compile_repeated_blocks(fullgraph=True, **({"backend": "eager"} if small else {}))
            prefix = "compiled " if compiled else ""
            contexts: dict[str, Any] = {f"{prefix}stock": nullcontext}
            for variant, policy_name in VARIANTS.items():
                contexts[prefix + variant] = functools.partial(regulated, case, policy_name)
            results.setdefault(name, {}).update(measured(case, contexts, turns, device))
        for variant, row in results.get(name, {}).items():
            row["beyond"] = beyond(row, results[name]["compiled stock" if variant.startswith("compiled") else "stock"])
        for row in results.get(name, {}).values():
            row.pop("by_kernel", None)
        if case is not None:
            start = time.perf_counter()
            uvr_core.attach(case.model).detach()
            results[name]["attach_seconds"] = time.perf_counter() - start
            del case
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return {
        "environment": environment(device, dtype), "dry_run": small, "models": results, "left_out": left_out,
        "minutes": (time.perf_counter() - began) / 60,
    }  # fmt: skip


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    where = results["environment"]
    told = f"{where['device']}, {where['dtype']}, torch {where['torch']}, diffusers {where['diffusers']}"
    lines = ["# What regulation costs on a GPU", ""]
    lines += [f"{told}, uvr {where['uvr']} ({where['git']}); {results['minutes']:.1f} minutes."]
    if results["dry_run"]:
        lines += ["", "**A dry run: small models on a CPU. It shows that the script runs, and nothing else.**"]
    lines += ["", "| | asked | " + " | ".join(results["models"]) + " |", "|---|---|" + "---|" * len(results["models"])]
    for what, variant, base, most in BARS:
        told = [table[variant]["median"] if variant in table else None for table in results["models"].values()]
        cells = ["not measured" if m is None else f"{m:.4f} ({'holds' if m <= most else 'misses'})" for m in told]
        lines.append(f"| {what}, of {base} | <= {most} | {' | '.join(cells)} |")
    for name, table in results["models"].items():
        lines += ["", f"## {name}", "", f"Attach: {1e3 * table['attach_seconds']:.1f} ms.", ""]
        lines += [
            "| | s a forward | ratio | range | peak, MiB | kernels | host syncs |",
            "|---|---|---|---|---|---|---|",
        ]
        for variant, row in table.items():
            if isinstance(row, dict):
                low, high = row["range"]
                lines.append(
                    f"| {variant} | {row['seconds']:.4f} | {row['median']:.4f} | {low:.3f} to {high:.3f} | "
                    f"{row['peak_bytes'] / 2**20:.0f} | {row['kernels']} | {row['host_syncs']} |"
                )
        for variant, row in table.items():
            if isinstance(row, dict) and row.get("beyond"):
                lines += ["", f"What takes `{variant}` longest beyond stock, by CUDA's profiler:", ""]
                lines += [f"- {took:.2f} ms in {count} more of `{name[:100]}`" for name, took, count in row["beyond"]]
    if results["left_out"]:
        lines += ["", f"Left out for time: {', '.join(results['left_out'])}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--models", default="flux,kontext,qwen-image")
    parser.add_argument("--minutes", type=float, default=4.5, help="no part begins later; the last may take one more")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="leave compiled models out")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("no CUDA device; --dry-run shows that the script runs")
    device = torch.device("cpu" if args.dry_run else "cuda")
    turns = 1 if args.dry_run else args.turns
    results = measure(
        args.models.split(","), device, small=args.dry_run, turns=turns, minutes=args.minutes, eager=args.eager
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (args.out / "gpu.md").write_text(page(results), "utf-8")
    print(args.out / "gpu.md")


if __name__ == "__main__":
    main()
