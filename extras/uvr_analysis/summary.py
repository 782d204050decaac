"""What was measured, as analysis.json says it and `uvr report` shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from .curves import band, boundary, mean_of
from .flows import ROLES, Flows
from .localisation import localisation_of
from .stages import stages_of


def to_dict(flows: Flows) -> dict[str, Any]:
    """JSON-ready: per direction the curve with its band, the block by step means, and the stage boundary."""
    directions = {}
    for source, into in flows.directions():
        curve = flows.curve(source, into)
        directions[f"{source} to {into}"] = {
            "images": int(np.isfinite(curve).all(1).sum()),
            **{name: rounded(line) for name, line in zip(("mean", "low", "high"), band(curve), strict=True)},
            "lift": rounded(mean_of(flows.curve(source, into, "lift"))),
            "by_step_and_block": rounded(mean_of(flows.by_block(source, into))),
            "boundary": attrs.asdict(boundary(curve)),
            "boundary_by_block": [boundary(line).step for line in np.moveaxis(flows.by_block(source, into), 2, 0)],
        }
    return {
        "images": len(flows.images),
        "steps": len(flows.sigmas),
        "sigmas": rounded(np.asarray(flows.sigmas)),
        "blocks": list(flows.blocks),
        "grid": list(flows.grid),
        "tokens": {role: rounded(flows.counts[:, i].mean()) for i, role in enumerate(ROLES)},
        "directions": directions,
        "stages": {
            into: {name: attrs.asdict(stage) for name, stage in stages_of(flows, into).items()}
            for into in ("output", "located")[: 1 if flows.masks is None else 2]
        },
        "localisation": {
            probe: {
                **{name: rounded(getattr(line, name)) for name in ("auroc", "low", "high", "within", "prior")},
                "images": line.images,
            }
            for probe, line in localisation_of(flows).items()
        },
        "seconds": round(flows.seconds, 3),
    }


def rounded(values: Any) -> Any:
    """Lists of floats with 6 significant digits; None for NaN."""
    if np.ndim(values):
        return [rounded(value) for value in values]
    return float(f"{float(values):.6g}") if np.isfinite(values) else None


def text(data: Mapping[str, Any]) -> str:
    """The contents of analysis.json in lines."""
    lines = [
        f"{data['model']}: {data['pipeline']}, {data['images']} images, {data['steps']} steps, {len(data['blocks'])} "
        f"blocks, {data['seconds']:.1f} s"
    ]
    for into, stages in data["stages"].items():
        lines.append(f"into {into} patches:" if into == "located" else "into the picture:")
        for name, stage in stages.items():
            seen = {True: "seen", False: "not seen", None: "none"}[stage["seen"]]
            lines.append(f"    {name}: {seen}; {stage['why']}")
    for probe, line in data["localisation"].items():
        lines.append(
            f"localisation at {probe}: patch AUROC {line['auroc'][0]:.2f} at step 0, {line['auroc'][-1]:.2f} at the "
            f"last, {line['images']} images"
        )
    return "\n".join(lines)


def show(files: Sequence[Path], whole: bool) -> str:
    """For `uvr report`: what these analysis.json say; `whole`: as one Markdown page, with the figures beside them."""
    parts = []
    for file in files:
        data = json.loads(file.read_text("utf-8"))
        figures = [f"![{name}]({file.parent.name}/{name})" for name in data["files"]] if whole else []
        parts.append("\n\n".join([f"```\n{text(data)}\n```" if whole else text(data), *figures]))
    return "\n\n".join(["# Flows", *parts]) + "\n" if whole else "\n".join(parts)
