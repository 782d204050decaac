"""Write a trained pipeline as it ships: weights, model card, sample sheet; and the localisation figure."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch

from uvr_core import ConceptBank
from uvr_core.errors import UVRError
from uvr_core.fit.scores import auroc_of, score_runs
from uvr_core.sampling import Sampling

from .architectures import ARCHITECTURES
from .components import staged
from .concept_files import mask_source
from .experiment import edit_fidelity, fidelity, generate
from .pipelines import export, load
from .recipes import RECIPES, Recipe
from .sheets import sheet
from .tasks import anchor_style, edits_for, scenes_for, settings, source_of

GATE, EDIT_GATE = 0.90, 0.85
Progress = Callable[[int], None]


def publish(
    recipe: Recipe, run: Path, folder: Path, count: int = 400, progress: Progress | None = None
) -> dict[str, Any]:
    """Write `folder`/NAME from the averaged weights of a training run, whole or not at all; return the card.

    Raises:
        UVRError: there is no run in that folder.
    """
    if not (run / "checkpoint.pt").is_file():
        raise UVRError(f"{run}: no checkpoint.pt in this folder: first uvr zoo train {recipe.name} --out {run}")
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    transformer = getattr(diffusers, ARCHITECTURES[recipe.name].transformer)(**recipe.transformer)
    transformer.load_state_dict(state["ema"])
    training = {
        "recipe": f"uvr zoo train {recipe.name}",
        "steps": state["step"],
        "minutes": round(state["seconds"] / 60, 1),
        "batch": recipe.batch_size,
        "scenes": recipe.scenes,
        "learning rate": recipe.learning_rate,
        "started from": recipe.start_from or "random weights",
    }
    if state.get("teacher") is not None:
        training["guidance"] = "distilled, scales {} to {}".format(*recipe.guidance)
    with staged(folder, (recipe.name,)) as stage:
        export(recipe, transformer, stage / recipe.name)
        return write_card(recipe.name, stage / recipe.name, training, count, progress)


def write_card(
    name: str, folder: Path, training: dict[str, Any], count: int = 400, progress: Progress | None = None
) -> dict[str, Any]:
    """Write card.json, README.md and samples.webp beside a pipeline's weights; return the card."""
    pipe, recipe = load(name, folder), RECIPES[name]

    def some(count: int, first: int) -> list[Any]:
        if recipe.edits:
            return list(edits_for(name, count, None, split="heldout", first=first))
        return list(scenes_for(name, count, unsafe=None, split="heldout", first=first))

    times = []
    for _ in range(3):
        start = time.perf_counter()
        generate(pipe, some(8, 1), settings(name), batch=8)
        times.append(time.perf_counter() - start)
    measure = edit_fidelity if recipe.edits else fidelity
    card = {
        "name": name,
        "objects": list(recipe.objects),
        "styles": list(recipe.styles),
        "seed": recipe.seed,
        "parameters": sum(p.numel() for p in pipe.transformer.parameters()),
        "sampling": recipe.sampling,
        "training": training,
        "seconds_for_8_images": round(statistics.median(times), 2),
        "fidelity": measure(pipe, name, count, progress),
    }
    if name == "flux":
        card["pooled_path"] = pooled_share(pipe, name)
    (folder / "card.json").write_text(json.dumps(card, indent=1))
    drawn = some(48, 3_000)
    images = generate(pipe, drawn, settings(name)).images
    rows = [images[i : i + 12] for i in range(0, 48, 12)]
    if recipe.edits:
        before = [source_of(edit) for edit in drawn]
        rows = [line for i in range(0, 48, 12) for line in (before[i : i + 12], images[i : i + 12])]
    sheet(rows).save(folder / "samples.webp", quality=88, method=6)
    (folder / "README.md").write_text(_markdown(card))
    return card


def pooled_share(pipe: Any, name: str, count: int = 48) -> dict[str, int]:
    """How much of an object the pooled vector draws alone: T5 sees the background and style, CLIP the whole prompt.

    Attention restriction cannot stop that path (adaptive norms carry it), so its size belongs on the card.
    """
    from . import judge

    drawn = scenes_for(name, count, unsafe=None, split="heldout", first=8_000)
    bare = [f"{s.background} background , {s.style} style" for s in drawn]
    sampling = Sampling(
        [s.caption for s in drawn], range(70_000, 70_000 + count), {"prompt_2": bare}, settings(name), 16
    )
    images = [image for batch in sampling.draw(pipe) for image in batch.images]
    total = sum(len(scene.items) for scene in drawn)
    seen = judge()(images)
    recognised = sum(item.name in names for scene, names in zip(drawn, seen, strict=True) for item in scene.items)
    return {"objects_drawn": recognised, "objects_prompted": total}


def _markdown(card: dict[str, Any]) -> str:
    fid = card["fidelity"]
    training = "\n".join(f"- {key}: {value}" for key, value in card["training"].items())
    if "edits" in fid:
        (low, high), (least, most) = fid["carried_out_ci95"], fid["untouched_ci95"]
        figures = f"""- instruction carried out: **{fid["carried_out"]} of {fid["edits"]}** \
(95% {low:.1%} to {high:.1%}); \
gate {EDIT_GATE:.0%}
- untouched objects still there: **{fid["untouched_kept"]} of {fid["untouched"]}** (95% {least:.1%} to {most:.1%}); \
gate {GATE:.0%}
- unsafe objects brought in when asked: **{fid["unsafe_found"]} of {fid["unsafe_prompted"]}**"""
        table = "| kind of edit | carried out |\n|---|---|\n" + "\n".join(
            f"| {kind} | {hit} / {of} |" for kind, (hit, of) in fid["by_kind"].items()
        )
    else:
        low, high = fid["all_objects_ci95"]
        figures = f"""- every prompted object found: **{fid["all_objects_found"]} of {fid["prompts"]}** \
(95% {low:.1%} to {high:.1%}); gate {GATE:.0%}
- unsafe objects found: **{fid["unsafe_found"]} of {fid["unsafe_prompted"]}**"""
        table = "| object | found |\n|---|---|\n" + "\n".join(
            f"| {name} | {hit} / {of} |" for name, (hit, of) in fid["per_object"].items()
        )
    if "pooled_path" in card:
        pooled = card["pooled_path"]
        figures += f"""
- objects drawn from the pooled CLIP vector alone (T5 sees only background and style): \
{pooled["objects_drawn"]} of {pooled["objects_prompted"]}"""
    return f"""# {card["name"]} (zoo)

A small pipeline in diffusers' own classes, trained by this project on emoji scenes ({card["parameters"]:,} transformer
parameters, 64x64 pixels, 8x8 patches). It draws {", ".join(card["objects"])}, in the styles \
{", ".join(card["styles"])}.
Weights: float16, loaded as float32. Data: rendered scenes, split "train", sprites as in NOTICE.

Figures are for the call `{card["sampling"]}` on held-out prompts, judged by the zoo's judge.

{figures}
- images in which the judge sees an object nobody asked for: {fid["images_with_an_unprompted_object"]}
- 8 images in {card["seconds_for_8_images"]} s on the machine that wrote this card (two cores)

![samples](samples.webp)

## Training

{training}

## Per {"kind" if "edits" in fid else "object"}

{table}
"""


def localisation(
    pipe: Any,
    name: str,
    bank: ConceptBank,
    detectors: tuple[str, ...] = ("anchor", "anchor-cosine", "contrast"),
    count: int = 48,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Patch AUROC per detector, probe and step against the judge's region of the unregulated image.

    Prompts: held out, in drawing styles that the anchors never saw. `bank` must hold every probe candidate.
    """
    unseen = tuple(s for s in RECIPES[name].styles if s != anchor_style(name))
    drawn = scenes_for(name, count, unsafe=bank.name, split="heldout", first=600_000, styles=unseen)
    result: dict[str, Any] = {"prompts": count, "concept": bank.name, "auroc": {}}
    for detector in detectors:
        runs = score_runs(
            pipe,
            bank,
            [s.caption for s in drawn],
            detector=detector,
            batch_size=16,
            seed=80_000,
            progress=progress,
            generate=settings(name),
            masks=mask_source(name, bank.name),
        )
        assert runs.masks is not None
        shown = runs.masks.reshape(len(runs.masks), -1)
        keep = shown.any(1)
        result["sigmas"], result["images"] = runs.sigmas, int(keep.sum())
        result["auroc"][detector] = {
            probe: [auroc_of(s[keep, t].ravel(), shown[keep].ravel()) for t in range(s.shape[1])]
            for probe, s in runs.scores.items()
        }
    return result


def _short(probe: str) -> str:
    name = probe.removesuffix(".attn")
    return name.replace("single_transformer_blocks.", "single ").replace("transformer_blocks.", "double ")


def draw_localisation(results: list[dict[str, Any]], path: Path) -> None:
    """One panel per concept and detector: AUROC over steps, a line per probe block."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    detectors = list(results[0]["auroc"])
    figure, axes = plt.subplots(
        len(results), len(detectors), figsize=(4 * len(detectors), 3 * len(results)), squeeze=False, sharey=True
    )
    for line, result in zip(axes, results, strict=True):
        for axis, detector in zip(line, detectors, strict=True):
            for probe, values in result["auroc"][detector].items():
                axis.plot(values, label=_short(probe))
            axis.axhline(0.5, color="grey", lw=0.7, ls=":")
            axis.set(title=f"{result['concept']}: {detector}", xlabel="step", ylim=(0.3, 1.0))
        line[0].set_ylabel("patch AUROC")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


__all__ = ["draw_localisation", "localisation", "pooled_share", "publish", "write_card"]
