"""`uvr demo`: first pictures, or every pipeline measured. Torch loads inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from uvr_core.cli import output, say
from uvr_core.cli.progress import stages
from uvr_core.cli.tables import table
from uvr_core.errors import UVRError
from uvr_core.files import finite, to_json

from .recipes import RECIPES, recipe_of

NEXT = """Next:
  your own prompt           uvr generate zoo:flux --concept flux-weapon --size 64x64 --steps 20 --true-cfg 3 \\
                              --prompt "a cat on the left and a pistol on the right , sky background , toy style"
  every pipeline, measured  make demo-all, or uvr demo --all
  your own model            uvr doctor MODEL"""


@click.command()
@click.option("--all", "measure_all", is_flag=True, help="Measure every pipeline: many prompts, controls, gates.")
@click.option("--pipelines", metavar="NAME,NAME", help="Measure these.  [default with --all: all of the zoo]")
@click.option("--quick", is_flag=True, help="Measure with a few prompts only, and no controls.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True, help="Folder.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Shifts the prompts' seeds.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output on stdout.")
@click.pass_context
def demo(
    ctx: click.Context, measure_all: bool, pipelines: str | None, quick: bool, out: Path, seed: int, as_json: bool
) -> None:
    """Draw held-out prompts with and without regulation, on a CPU and with nothing to download.

    Alone: first pictures of one pipeline, within a minute: OUT/pictures/, a contact sheet, a table.

    With --all, --pipelines or --quick: unsafe and benign prompts by the dozen, judged and counted: OUT/results.json,
    OUT/contact.png, OUT/PIPELINE/. Exits with 1 if a figure falls short of its gate.
    """
    if not (measure_all or quick or pipelines is not None):
        output.check_folder(out)
        _pictures(out, seed, as_json)
        return
    names = tuple(recipe_of(name.strip()).name for name in (pipelines or ",".join(RECIPES)).split(",") if name.strip())
    if not names:
        raise UVRError(f"--pipelines: names no pipeline; there are: {', '.join(RECIPES)}")
    output.check_folder(out)
    ctx.exit(_measured(out, names, quick, seed, as_json))


def _pictures(out: Path, seed: int, as_json: bool) -> None:
    with stages() as show:
        show("loading torch, diffusers and the pipeline flux", 0, 0)
        from uvr_core.cli.load import be_quiet

        be_quiet()
        from .pictures import ASKED, draw

        show("drawing", 0, len(ASKED))
        rows = []
        for row in draw(out, seed=seed):
            rows.append(row)
            show("drawing", row["number"], row["of"])
            say(f"{row['number']} of {row['of']}: {row['prompt']}")
    if as_json:
        click.echo(to_json({"pipeline": "flux", "seed": seed, "pictures": rows}))
        return
    lines = []
    for row in rows:
        located = ", ".join(f"{name} ({patches})" for name, patches in row["located"].items()) or "nothing"
        after = "the same picture, bit for bit" if row["identical"] else ", ".join(row["regulated"]["shows"])
        lines.append((row["number"], located, ", ".join(row["stock"]["shows"]), after))
    table("", ("picture", "located (patches)", "the judge sees, stock", "regulated"), lines)
    click.echo(f"Pictures: {out / 'pictures'}; side by side: {out / 'pictures.png'}; figures: {out / 'pictures.json'}")
    click.echo(NEXT)


def _measured(out: Path, names: tuple[str, ...], quick: bool, seed: int, as_json: bool) -> int:
    """The exit code."""
    from uvr_core.cli.load import be_quiet

    be_quiet()
    from .demo import run

    with stages() as show:
        result = run(out, quick=quick, progress=show, pipelines=names, seed=seed)
    if as_json:
        click.echo(to_json(result))
    else:
        _show(finite(result))
        click.echo(f"results.json and contact.png in {out}")
    shortfalls = result.get("fell_short", [])
    for gate in shortfalls:
        say(f"fell short: {gate}")
    return 1 if shortfalls else 0


def _show(result: dict[str, Any]) -> None:
    """The figures of results.json, one block per pipeline, one column per concept and case."""
    for name, figures in result["pipelines"].items():
        columns = {title: _figures(row, figures["time"]) for title, row in figures["concepts"].items()}
        labels = dict.fromkeys(label for column in columns.values() for label in column)
        rows = [(label, *(column.get(label, "-") for column in columns.values())) for label in labels]
        table("", (name, *columns), rows, width=160)


def _share(value: float | None, interval: Any = None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" + (f" [{interval[0]:.1%}, {interval[1]:.1%}]" if interval else "")


def _figures(row: dict[str, Any], times: dict[str, float]) -> dict[str, str]:
    lines = {
        "unsafe prompts: concept located": f"{row['located']} of {row['of']}",
        "concept shown, stock -> regulated": f"{row['stock_unsafe']} -> {row['regulated_unsafe']} of {row['total']}",
        "relative erase, Wilson 95%": _share(row["relative_erase"], row["erase_ci95"]),
        "images without the concept": _share(row["safe_share"], row["safe_share_ci95"]),
        "other object retained": f"{row['other_kept']} of {row['other_shown']}, "
        + _share(row["retention"], row["retention_ci95"]),
        "benign prompts: falsely located": f"{row['benign_located']} of {row['benign']}",
        "not located: bit-identical": f"{row['idle_bit_identical']} of {row['idle_images']}",
    }
    if "edits_stock" in row:
        lines["instruction carried out, stock -> regulated"] = f"{row['edits_stock']} -> {row['edits_regulated']}"
    for control, what in (("oracle", "the true mask"), ("random", "random patches")):
        if control in row:
            lines[f"control: erase with {what}"] = _share(row[control]["relative_erase"])
    lines["time, regulated / stock"] = f"active {times['active']:.2f}, idle {times['idle']:.2f}"
    return lines
