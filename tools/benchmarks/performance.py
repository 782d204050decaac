"""What regulation costs at the sizes of FLUX.1: time, memory, growth, attach, `uvr --help`. One run, paired ratios.

    python tools/benchmarks/performance.py [--part stack --part growth ...] [--quick] [--lengths 1024,2048,4608]
        [--dtype float32] [--device cpu] [--threads N] [--out docs]

Writes figures/performance.json and performance.md; `--from` writes the page again from a JSON. All variants of a
comparison run in every turn, in alternating order, and a ratio is taken within a turn; given are the median and the
range. `share` is the share of output patches that are regulated, core and ring together.

Parts: `stack`, one attention call and whole forwards of a block stack of FLUX.1's width with random weights; `growth`
with concepts, anchors, batch; `zoo`, whole generations of the zoo's pipelines; `attach`, to a FLUX.1 of 57 blocks
without memory; `help`, the command line.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import torch
from measure import counted, environment, interleaved, peak_bytes, plain, ratio, seconds
from performance_page import page
from sizes import NEVER, Attention, Size, Stack, bank, blob, flux, policy

import uvr_core
import uvr_zoo
from uvr_adapters.flux import FLUX
from uvr_core.intercept.forwards import intervene
from uvr_core.plugins import registry
from uvr_core.protocols import RowClass
from uvr_zoo.experiment import generate
from uvr_zoo.tasks import benign_tasks, cases, settings, unsafe_tasks

SHARES = (0.05, 0.10, 0.30)
BAR_SHARE = 0.10
LONG = ("block", "redirect", "selective", "uvr")  # the policies measured at the longest length
FREE = ("observe", "refuse")  # change nothing: they cost what idle costs, or end the run


@attrs.frozen
class Plan:
    """How much is measured, and on what."""

    device: torch.device
    dtype: torch.dtype
    lengths: tuple[int, ...] = (1024, 2048, 4608)
    size: Size = attrs.field(factory=Size)
    singles: int = 1
    turns: int = 5  # of attention calls
    forwards: int = 5  # turns of the whole forwards for which something is asked; 3, and at the longest 2, of others
    idle_pairs: int = 12
    zoo_turns: int = 2
    largest_matrix: float = 6e9  # bytes: the materialised form is left out where it needs more
    quick: bool = False

    def patches(self, length: int) -> int:
        return length - self.size.text


def tell(*words: object) -> None:
    print(*words, flush=True)


def show(title: str, row: dict[str, Any]) -> None:
    low, high = row["range"]
    tell(f"  {title}: {row['median']:.4f} ({low:.4f} to {high:.4f}), {1e3 * row['seconds']:.1f} ms")


# -- one attention call, and a stack of blocks -----------------------------------------------------------------


def _fits(plan: Plan, length: int, batch: int = 1) -> bool:
    return 2 * batch * plan.size.heads * length**2 * plan.dtype.itemsize <= plan.largest_matrix


def attention(plan: Plan, length: int) -> dict[str, Any]:
    """{variant: ratio to the stock call, rows, peak bytes in units of q} of one attention call."""
    a = Attention.make(plan.size, plan.patches(length), plan.device, plan.dtype)
    mask = torch.from_numpy(blob(a.layout.grid, BAR_SHARE, 1)).flatten().to(plan.device)
    works: dict[str, Any] = {"idle": a.regulation(policy("uvr"), None)[0]}
    rows: dict[str, int] = {"idle": 0}
    longest = length == max(plan.lengths)
    for name in LONG if longest else sorted(set(registry().names("policy")) - set(FREE)):
        for share in SHARES if name == "uvr" or (name == "selective" and not longest) else (BAR_SHARE,):
            title = f"{name} {share:.0%}"
            works[title], rows[title] = a.regulation(policy(name), share)
    variants = {"stock": plain(a.stock)}
    variants |= {t: plain(lambda s=s: a.edit(s, a.stock())) for t, s in works.items()}
    if _fits(plan, length):
        rows["matrix"] = length
        variants["matrix"] = plain(lambda: a.materialised(mask.long() * RowClass.CORE))
    taken = interleaved(variants, plan.turns, plan.device, warm="stock" if longest else None)
    table: dict[str, Any] = {}
    for title in rows:
        table[title] = {**ratio(taken, title), "rows": rows[title], "tokens": length}
        output = a.stock()
        if title == "matrix":
            work = variants[title][1]
        else:
            work = functools.partial(a.edit, works[title], output)
            with counted() as (watch, syncs):
                a.edit(works[title], output)
            table[title] |= {
                "kernels": sum(watch.kernels.values()), "attention_calls": _sdpa(watch.kernels),
                "host_syncs": sum(syncs.calls.values()), "bytes_written": watch.bytes / a.unit,
                "largest": watch.largest / a.query.numel(),
            }  # fmt: skip
        table[title]["peak"] = peak_bytes(work, plan.device) / a.unit
        show(f"{title}, {rows[title]} rows, peak {table[title]['peak']:.2f} q", table[title])
    return table


def _sdpa(kernels: dict[str, int]) -> int:
    return sum(count for name, count in kernels.items() if name.startswith("_scaled_dot_product"))


def editing(plan: Plan) -> dict[str, Any]:
    """One attention call with a reference image, as FLUX.1 Kontext has it, at the shortest length's patches."""
    patches = plan.patches(min(plan.lengths)) if plan.quick else 1024
    a = Attention.make(plan.size, patches, plan.device, plan.dtype, references=1)
    names = ("uvr", "selective", "uvr-released")
    works = {f"{name} {BAR_SHARE:.0%}": a.regulation(policy(name), BAR_SHARE) for name in names}
    variants = {"stock": plain(a.stock)}
    variants |= {t: plain(lambda s=s: a.edit(s, a.stock())) for t, (s, _) in works.items()}
    taken = interleaved(variants, plan.turns, plan.device)
    table = {}
    for title, (session, rows) in works.items():
        peak = peak_bytes(functools.partial(a.edit, session, a.stock()), plan.device) / a.unit
        table[title] = {**ratio(taken, title), "rows": rows, "tokens": a.query.shape[2], "peak": peak}
        show(f"editing, {title}, peak {peak:.2f} q", table[title])
    return table


def forwards(plan: Plan, stack: Stack, length: int) -> dict[str, Any]:
    """{variant: ratio to the stock forward} of a block stack."""
    stack.resize(plan.patches(length))
    longest = length == max(plan.lengths)
    contexts: dict[str, Any] = {"stock": nullcontext, "idle": stack.idle}
    wanted = [("uvr", BAR_SHARE), ("uvr", 0.30), ("selective", BAR_SHARE)]
    contexts |= {f"{name} {share:.0%}": functools.partial(stack.active, name, share) for name, share in wanted}
    if _fits(plan, length):
        contexts["matrix"] = functools.partial(stack.materialised, BAR_SHARE)
    variants = {name: (context, stack.forward) for name, context in contexts.items()}
    asked = ("idle", f"uvr {BAR_SHARE:.0%}")
    others = [name for name in variants if name not in ("stock", *asked)]
    table: dict[str, Any] = {}
    for names, turns in ((asked, plan.forwards), (others, min(plan.forwards, 2 if longest else 3))):
        chosen = {name: variants[name] for name in ("stock", *names)}
        taken = interleaved(chosen, turns, plan.device, warm="stock" if names is asked else "")
        table |= {name: ratio(taken, name) for name in names}
    unit = length * plan.size.width * plan.dtype.itemsize
    for name in ("stock", "idle", f"uvr {BAR_SHARE:.0%}", f"selective {BAR_SHARE:.0%}"):
        if name == "stock" or not longest or plan.device.type == "cuda" or plan.quick:
            with variants[name][0]():
                table.setdefault(name, {})["peak"] = peak_bytes(stack.forward, plan.device) / unit
    for name in (*asked, *others):
        show(f"forward, {name}", table[name])
    return table


def idle(plan: Plan, stack: Stack) -> dict[str, Any]:
    """The idle forward at the shortest length, in many pairs, and what it does more than the stock forward."""
    stack.resize(plan.patches(min(plan.lengths)))
    variants = {"stock": (nullcontext, stack.forward), "idle": (stack.idle, stack.forward)}
    row = ratio(interleaved(variants, plan.idle_pairs, plan.device), "idle")
    for name, (context, work) in variants.items():
        with context():
            work()
            with counted() as (watch, syncs):
                work()
        row[f"{name}_counts"] = {
            "kernels": sum(watch.kernels.values()), "views": watch.views, "attention_calls": _sdpa(watch.kernels),
            "host_syncs": sum(syncs.calls.values()),
        }  # fmt: skip
    row["tokens"] = min(plan.lengths)
    show(f"idle forward, {plan.idle_pairs} pairs", row)
    return row


def python_overhead(plan: Plan) -> dict[str, Any]:
    """Microseconds that an idle attention costs beyond stock: small tensors, so that Python is what is timed."""
    small = Stack(Size(2, 32, 4, 8), 18, 16, plan.device, torch.float32)
    variants = {"stock": (nullcontext, small.forward), "idle": (small.idle, small.forward)}
    taken = interleaved(variants, 20 if plan.quick else 100, plan.device)
    extra = [b - a for a, b in zip(taken["stock"], taken["idle"], strict=True)]
    each = {"median": statistics.median(extra), "of_minima": min(taken["idle"]) - min(taken["stock"])}
    row = {f"microseconds_{name}": 1e6 * value / len(small.paths) for name, value in each.items()}
    tell(f"  idle, Python: {row['microseconds_median']:.1f} us per attention (forward of {len(small.paths)})")
    return row


def measure_stack(plan: Plan) -> dict[str, Any]:
    tell("stack")
    result: dict[str, Any] = {"singles": plan.singles, "text": plan.size.text, "attention": {}, "forward": {}}
    result["python"] = python_overhead(plan)
    for length in plan.lengths:
        tell(f" one attention, {length} tokens")
        result["attention"][str(length)] = attention(plan, length)
    result["editing"] = editing(plan)
    stack = Stack(plan.size, plan.singles, plan.patches(plan.lengths[0]), plan.device, plan.dtype)
    result["idle"] = idle(plan, stack)
    for length in plan.lengths:
        tell(f" {1 + plan.singles} blocks, {length} tokens")
        result["forward"][str(length)] = forwards(plan, stack, length)
    return result


# -- growth ----------------------------------------------------------------------------------------------------


def measure_growth(plan: Plan) -> dict[str, Any]:
    """The probe block's call with more concepts and anchors, where nothing is located; batches where 10% is."""
    tell("growth")
    length = max(plan.lengths)
    a = Attention.make(plan.size, plan.patches(length), plan.device, plan.dtype)
    result: dict[str, Any] = {"tokens": length, "attention_seconds": seconds(a.stock, plan.device)}
    output = a.stock()

    def probing(counts: Sequence[int], make: Callable[[int], Any]) -> dict[str, Any]:
        variants = {}
        for count in counts:
            regulation = make(count)
            regulation.run.leave()
            regulation.run.enter("probe")
            variants[str(count)] = plain(lambda r=regulation: intervene(a.call("probe", output), r, FLUX))
        taken = interleaved(variants, 10 * plan.turns, plan.device)
        return {name: {"seconds": statistics.median(t), "range": [min(t), max(t)]} for name, t in taken.items()}

    uvr = policy("uvr")
    result["concepts"] = probing((1, 5, 20), lambda n: a.regulation(uvr, None, concepts=n)[0])
    result["anchors"] = probing((1, 100, 10_000), lambda n: a.regulation(uvr, None, anchors=n)[0])
    for kind in ("concepts", "anchors"):
        tell(f"  probe block, {kind}:", {n: f"{1e3 * row['seconds']:.2f} ms" for n, row in result[kind].items()})
    result["batch"] = {}
    for batch in (1, 2) if plan.quick else (1, 2, 4, 8):
        b = Attention.make(plan.size, plan.patches(min(plan.lengths)), plan.device, plan.dtype, batch=batch)
        regulation, _ = b.regulation(uvr, BAR_SHARE)
        variants = {"stock": plain(b.stock), "uvr": plain(lambda b=b, s=regulation: b.edit(s, b.stock()))}
        row = ratio(interleaved(variants, 2 * plan.turns, plan.device), "uvr")
        row["peak"] = peak_bytes(functools.partial(b.edit, regulation, b.stock()), plan.device) / b.unit
        result["batch"][str(batch)] = row
        show(f"batch {batch}, peak {row['peak']:.2f} q", row)
    return result


# -- whole pipelines, attach, command line -----------------------------------------------------------------------


def measure_zoo(plan: Plan, images: int = 8) -> dict[str, Any]:
    """{pipeline: {"active", "idle": ratio}} with `selective`; idle: pictures in which nothing is located."""
    tell("zoo")
    table: dict[str, Any] = {}
    for name in uvr_zoo.names()[:1] if plan.quick else uvr_zoo.names():
        pipe, options, case = uvr_zoo.load(name), settings(name), cases(name)[0]
        concept = uvr_zoo.concepts(name, case.concept)
        attached = functools.partial(uvr_core.attach, pipe, concepts=concept, policy="selective")
        benign = benign_tasks(name, 2 * images, 710_000)
        observe = functools.partial(uvr_core.attach, pipe, concepts=concept, policy="observe")
        found = generate(pipe, benign, options, batch=images, regulator=lambda part, o=observe: o()).findings()
        sets = {
            "active": unsafe_tasks(name, case, images, 700_000),
            "idle": [task for task, finding in zip(benign, found, strict=True) if not finding.located][:images],
        }
        table[name] = {}
        for kind, drawn in sets.items():
            work = functools.partial(generate, pipe, drawn, options, batch=images)
            taken = interleaved({"stock": (nullcontext, work), kind: (attached, work)}, plan.zoo_turns, plan.device)
            table[name][kind] = {**ratio(taken, kind), "images": len(drawn)}
            show(f"{name}, {kind}", table[name][kind])
    return table


def measure_attach(plan: Plan) -> dict[str, Any]:
    """Attach to, and detach from, FLUX.1's 57 blocks; nothing has memory."""
    with torch.device("meta"):
        model = flux(Size(), 19, 38)
    concept = bank(uvr_core.Fingerprint("FluxTransformer2DModel", 57, 24, 128), "single_transformer_blocks.10.attn")
    spent: dict[str, list[float]] = {"attach": [], "detach": []}
    for _ in range(5 if plan.quick else 30):
        start = time.perf_counter()
        regulator = uvr_core.attach(model, concepts=concept, detector="anchor", policy="uvr", threshold=NEVER)
        middle = time.perf_counter()
        regulator.detach()
        spent["attach"].append(middle - start)
        spent["detach"].append(time.perf_counter() - middle)
    row = {k: {"seconds": statistics.median(v), "range": [min(v), max(v)]} for k, v in spent.items()}
    tell("attach", {k: f"{1e3 * v['seconds']:.1f} ms" for k, v in row.items()})
    return {"blocks": 57, **row}


def measure_help(plan: Plan) -> dict[str, Any]:
    """Seconds of `uvr --help`, and of a Python that does nothing."""
    commands = {"uvr --help": ["-c", "from uvr_core.cli import main; main()", "--help"], "python": ["-c", "pass"]}
    variants = {
        name: plain(lambda c=c: subprocess.run([sys.executable, *c], check=True, stdout=subprocess.DEVNULL))
        for name, c in commands.items()
    }
    taken = interleaved(variants, 3 if plan.quick else 10, torch.device("cpu"))
    row = {name: {"seconds": statistics.median(t), "range": [min(t), max(t)]} for name, t in taken.items()}
    tell("help", {name: f"{v['seconds']:.2f} s" for name, v in row.items()})
    return row


PARTS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "stack": measure_stack, "growth": measure_growth, "zoo": measure_zoo, "attach": measure_attach,
    "help": measure_help,
}  # fmt: skip


def measure(plan: Plan, parts: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {"environment": environment(plan.device, plan.dtype), "quick": plan.quick}
    start = time.perf_counter()
    with torch.no_grad():
        for part in parts:
            result[part] = PARTS[part](plan)
    return {**result, "minutes": (time.perf_counter() - start) / 60}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="Only this part; may be repeated.")
    parser.add_argument("--quick", action="store_true", help="Small sizes, to see that everything runs.")
    parser.add_argument("--lengths", help="Tokens in all, text included, separated by commas.")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--singles", type=int, default=1, help="Single-stream blocks in the stack.")
    parser.add_argument("--threads", type=int, help="Of torch; all unless given.")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--from", dest="given", type=Path, help="Write the page from this JSON instead.")
    arguments = parser.parse_args()
    if arguments.given:
        results = json.loads(arguments.given.read_text())
    else:
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        plan = Plan(torch.device(arguments.device), getattr(torch, arguments.dtype), singles=arguments.singles)
        if arguments.quick:
            small = Size(heads=4, head_dim=32, text=64, text_width=32)
            plan = attrs.evolve(
                plan, size=small, lengths=(128, 320), turns=2, forwards=1, idle_pairs=2, zoo_turns=1, quick=True
            )
        if arguments.lengths:
            plan = attrs.evolve(plan, lengths=tuple(int(n) for n in arguments.lengths.split(",")))
        results = measure(plan, arguments.part or tuple(PARTS))
        (arguments.out / "figures").mkdir(parents=True, exist_ok=True)
        (arguments.out / "figures" / "performance.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "performance.md").write_text(page(results))


if __name__ == "__main__":
    main()
