"""docs/figures/architecture.svg: the rooms of uvr_core and who imports whom, read from the source.

    python tools/architecture.py

A room is a module or a folder of uvr_core, a sibling a package beside it. An arrow is drawn where no longer way of
arrows says the same. A room stands one floor above the highest that it imports.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "figures" / "architecture.svg"
SIBLINGS = {
    name: ROOT / folder / name
    for folder, names in {
        "adapters": ("uvr_adapters",),
        "plugins": ("uvr_plugins",),
        "extras": ("uvr_analysis", "uvr_evaluation", "uvr_zoo"),
    }.items()
    for name in names
}
HALVES = {"engine": "decides", "intercept": "sees and counts"}
WIDTH, HEIGHT, ACROSS, DOWN = 158, 34, 178, 76  # a box; from box to box
Graph = dict[str, set[str]]


def rooms() -> dict[str, list[Path]]:
    """{room: its files}; `__init__` of the core hands names on and is no room."""
    core = ROOT / "uvr_core"
    found = {path.stem: [path] for path in core.glob("*.py") if not path.stem.startswith("__")}
    return found | {
        path.name: sorted(path.rglob("*.py")) for path in core.iterdir() if (path / "__init__.py").is_file()
    }


def imported(path: Path, package: tuple[str, ...]) -> set[str]:
    """Absolute names of what a file imports anywhere in it, without what only a type checker sees."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def graph() -> Graph:
    """{room or sibling: the rooms that it imports}."""
    core = rooms()
    arrows: Graph = {}
    for room, files in core.items():
        arrows[room] = set()
        for path in files:
            names = imported(path, path.relative_to(ROOT).parent.parts)
            targets = {name.split(".")[1] for name in names if name.startswith("uvr_core.")}
            arrows[room] |= {target for target in targets if target in core and target != room}
    for sibling, folder in SIBLINGS.items():
        arrows[sibling] = set()
        for path in folder.rglob("*.py"):
            names = imported(path, (sibling, *path.relative_to(folder).parent.parts))
            arrows[sibling] |= {n.split(".")[1] for n in names if n.startswith("uvr_core.") and n.split(".")[1] in core}
            arrows[sibling] |= {n.split(".")[0] for n in names if n.split(".")[0] in SIBLINGS} - {sibling}
    return arrows


def floors(arrows: Graph) -> dict[str, int]:
    """{name: its floor, from 0}. Raises ValueError: two rooms import each other, by whatever way."""
    floor: dict[str, int] = {}

    def visit(name: str, way: tuple[str, ...]) -> int:
        if name in way:
            raise ValueError(f"imports in a circle: {' > '.join((*way[way.index(name) :], name))}")
        if name not in floor:
            floor[name] = 1 + max((visit(target, (*way, name)) for target in sorted(arrows[name])), default=-1)
        return floor[name]

    for name in sorted(arrows):
        visit(name, ())
    return floor


def needed(arrows: Graph) -> Graph:
    """The arrows that no longer way implies."""

    def reached(name: str) -> set[str]:
        return arrows[name].union(*(reached(target) for target in arrows[name]))

    return {
        name: {target for target in targets if not any(target in reached(other) for other in targets - {target})}
        for name, targets in arrows.items()
    }


def places(arrows: Graph) -> dict[str, tuple[float, float]]:
    """{name: centre of its box}: floors from the bottom up, each ordered by where its arrows lead."""
    floor = floors(arrows)
    top = max(floor.values())
    levels = [sorted(name for name in floor if floor[name] == level) for level in range(top + 1)]
    wide = max(len(level) for level in levels)
    across: dict[str, float] = {}
    for level in levels:
        level.sort(key=lambda name: (sum(across[t] for t in arrows[name]) / max(len(arrows[name]), 1), name))
        for index, name in enumerate(level):
            across[name] = (wide - len(level)) / 2 + index
    return {name: (20 + WIDTH / 2 + across[name] * ACROSS, 60 + (top - floor[name]) * DOWN) for name in floor}


def svg(arrows: Graph) -> str:
    """The picture."""
    shown = needed(arrows)
    centre = places(shown)
    width = max(x for x, _ in centre.values()) + WIDTH / 2 + 20
    height = max(y for _, y in centre.values()) + HEIGHT / 2 + 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
        '<text x="20" y="24">Who imports whom: down only. Dashed: siblings, which come in by hooks.</text>',
    ]
    for name, targets in sorted(shown.items()):
        for target in sorted(targets):
            (x, y), (to_x, to_y) = centre[name], centre[target]
            start, end = y + HEIGHT / 2, to_y - HEIGHT / 2
            half = (end - start) / 2
            lines.append(
                f'<path d="M{x:.0f} {start:.0f}C{x:.0f} {start + half:.0f} {to_x:.0f} {end - half:.0f} '
                f'{to_x:.0f} {end:.0f}" fill="none" stroke="#99a" marker-end="url(#tip)"/>'
            )
    for name, (x, y) in sorted(centre.items()):
        style = (
            'fill="#f4f4f8" stroke="#667" stroke-dasharray="4 3"'
            if name in SIBLINGS
            else 'fill="#e8f0fe" stroke="#667"'
        )
        if name in HALVES:
            style = 'fill="#fde9d0" stroke="#a63"'
        left, top = x - WIDTH / 2, y - HEIGHT / 2
        lines.append(f'<rect x="{left:.0f}" y="{top:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="6" {style}/>')
        label = f"{name}: {HALVES[name]}" if name in HALVES else name
        size = ' font-size="11"' if name in HALVES else ""
        lines.append(f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle"{size}>{label}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(svg(graph()))
    print(PICTURE)
