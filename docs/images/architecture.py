"""Draws the picture of docs/architecture.md: the layers of pyproject.toml, and the imports found in the source.

`python docs/images/architecture.py` writes architecture.svg next to this file; with `--check` it only says whether that
file is current.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parents[2]
PICTURE = Path(__file__).with_name("architecture.svg")
HOST = "dfq_plugins"
ADAPTERS = "adapters"

WIDTH, TOP, ROW = 760, 92, 66
BOX_WIDTH, BOX_HEIGHT, LANE, GAP = 130, 34, 12, 14
FILLS = {"light": "#e3ecfb", "torch": "#fff3d6", "outside": "#dff3e4", "root": "#f3e3f7"}
LEGEND = {
    "light": "loads without torch",
    "torch": "imports torch",
    "outside": "found by entry points",
    "root": "root modules",
}
STYLE = "font: 15px system-ui, sans-serif; fill: #1c2733"
LINE = "#56616d"
SWEEPS = 24

Node = str | tuple[str, str, int]  # a package, or the place where an arrow (source, target) passes a row


def read_layers(settings: dict[str, Any]) -> list[list[str]]:
    """Return the layers of the host's import contract, from the top down."""
    contracts = settings["tool"]["importlinter"]["contracts"]
    (contract,) = (one for one in contracts if one.get("containers") == [HOST])
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


def read_light(settings: dict[str, Any], packages: Iterable[str]) -> set[str]:
    """Return the packages that may not import torch at module level."""
    ignores = settings["tool"]["ruff"]["lint"]["per-file-ignores"]
    return {name for name in packages if "TID253" not in ignores.get(f"{HOST}/{name}/**", [])}


def imported_packages(folder: Path, package: str) -> set[str]:
    """Return the host's packages that the modules in a folder import when they run, inside functions included."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py")))
    names = (name.split(".") for tree in trees for name in _imported_names(tree))
    return {parts[1] for parts in names if len(parts) > 1 and parts[0] == HOST} - {package}


def _imported_names(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from _imported_names(child)


def necessary(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return the arrows that are left when those that follow from others are dropped.

    >>> necessary({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    [('a', 'b'), ('b', 'c')]
    """

    def reached(name: str) -> set[str]:
        return imports[name].union(*(reached(target) for target in imports[name]))

    return [
        (source, target)
        for source, targets in imports.items()
        for target in sorted(targets)
        if not any(target in reached(other) for other in targets - {target})
    ]


def arrange(rows: list[list[Node]], neighbors: dict[Node, list[Node]]) -> dict[Node, float]:
    """Return the center of each node: rows sorted by the mean place of their neighbors, without overlaps."""
    places: dict[Node, float] = {}
    for row in rows:
        places |= {node: WIDTH * (index + 1) / (len(row) + 1) for index, node in enumerate(row)}
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 else reversed(rows):
            wanted = {
                node: sum(places[other] for other in neighbors[node]) / len(neighbors[node])
                if neighbors[node]
                else places[node]
                for node in row
            }
            row.sort(key=lambda node: (wanted[node], str(node)))
            places |= _spread(row, wanted)
    shift = (WIDTH - min(places.values()) - max(places.values())) / 2
    return {node: place + shift for node, place in places.items()}


def _spread(row: list[Node], wanted: dict[Node, float]) -> dict[Node, float]:
    """Move nodes apart as little as their widths need, and keep them on the page."""
    sizes = {node: BOX_WIDTH if isinstance(node, str) else LANE for node in row}
    left: dict[Node, float] = {}
    edge = float(GAP)
    for node in row:
        left[node] = max(wanted[node], edge + sizes[node] / 2)
        edge = left[node] + sizes[node] / 2 + GAP
    right: dict[Node, float] = {}
    edge = float(WIDTH - GAP)
    for node in reversed(row):
        right[node] = min(wanted[node], edge - sizes[node] / 2)
        edge = right[node] - sizes[node] / 2 - GAP
    middle = {node: (left[node] + right[node]) / 2 for node in row}
    edge = float(GAP)
    for node in row:  # the mean of both may still overlap at the margins
        middle[node] = max(middle[node], edge + sizes[node] / 2)
        edge = middle[node] + sizes[node] / 2 + GAP
    return middle


def draw() -> str:
    """Return the picture as SVG on its own background, so that it reads in light and dark pages."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = [[name for name in layer if (ROOT / HOST / name).is_dir()] for layer in read_layers(settings)]
    roots = [name for layer in read_layers(settings) for name in layer if (ROOT / HOST / f"{name}.py").is_file()]
    layers = [layer for layer in layers if layer]
    packages = [name for layer in layers for name in layer]
    imports = {name: imported_packages(ROOT / HOST / name, name) & set(packages) for name in packages}
    imports[ADAPTERS] = imported_packages(ROOT / ADAPTERS, ADAPTERS) & set(packages)
    level = {name: index for index, layer in enumerate(layers) for name in layer}
    level[ADAPTERS] = min((level[name] for name in imports[ADAPTERS]), default=len(layers)) - 1
    arrows = necessary(imports)

    rows: list[list[Node]] = [[name for name in level if level[name] == index] for index in range(len(layers))]
    paths: dict[tuple[str, str], list[Node]] = {}
    neighbors: dict[Node, list[Node]] = {name: [] for name in level}
    for source, target in arrows:
        lanes: list[Node] = [(source, target, index) for index in range(level[source] + 1, level[target])]
        paths[source, target] = [source, *lanes, target]
        for lane in lanes:
            rows[lane[2]].append(lane)  # type: ignore[arg-type,index]
            neighbors[lane] = []
        for one, other in pairwise(paths[source, target]):
            neighbors[one].append(other)
            neighbors[other].append(one)
    places = arrange(rows, neighbors)

    light = read_light(settings, packages)
    height = TOP + ROW * len(rows) + 64
    parts = [_head(height)]
    parts += [_arrow(path, places, level) for path in paths.values()]
    for name, index in level.items():
        kind = "outside" if name == ADAPTERS else "light" if name in light else "torch"
        parts.append(_box(round(places[name]) - BOX_WIDTH // 2, TOP + ROW * index, BOX_WIDTH, kind, name))
    parts.append(_box(GAP, TOP + ROW * len(rows), WIDTH - 2 * GAP, "root", "   ".join(f"{name}.py" for name in roots)))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _head(height: int) -> str:
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            f'aria-label="The packages of dfq_plugins in layers; each imports only from those below" style="{STYLE}">'
        ),
        (
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0 8 4 0 8z" fill="{LINE}"/></marker></defs>'
        ),
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
    ]
    for index, (kind, text) in enumerate(LEGEND.items()):
        left = 20 + index * 184
        parts.append(f'<rect x="{left}" y="18" width="16" height="16" rx="3" fill="{FILLS[kind]}" stroke="{LINE}"/>')
        parts.append(f'<text x="{left + 22}" y="31" font-size="13">{text}</text>')
    parts.append(
        '<text x="20" y="62" font-size="13">An arrow is an import; imports that follow from other arrows, and those of '
        "the root modules, are not drawn.</text>"
    )
    return "\n".join(parts)


def _arrow(path: list[Node], places: dict[Node, float], level: dict[str, int]) -> str:
    """Return a curve from the bottom of the first box to the top of the last, through a lane in each row between."""
    row = level[path[0]]  # type: ignore[index]
    commands = [f"M{places[path[0]]:.0f} {TOP + ROW * row + BOX_HEIGHT}"]
    for index, (one, other) in enumerate(pairwise(path), row):
        start, end = TOP + ROW * index + BOX_HEIGHT, TOP + ROW * (index + 1)
        middle = (start + end) // 2
        stop = end - 2 if other == path[-1] else end
        commands.append(
            f"C{places[one]:.0f} {middle} {places[other]:.0f} {middle} {places[other]:.0f} {stop}"
            + ("" if other == path[-1] else f"V{end + BOX_HEIGHT}")
        )
    return f'<path d="{"".join(commands)}" fill="none" stroke="{LINE}" stroke-width="1.4" marker-end="url(#head)"/>'


def _box(left: int, top: int, width: int, kind: str, title: str) -> str:
    return (
        f'<rect x="{left}" y="{top}" width="{width}" height="{BOX_HEIGHT}" rx="8" fill="{FILLS[kind]}" '
        f'stroke="{LINE}"/><text x="{left + width // 2}" y="{top + 22}" text-anchor="middle" font-weight="600" '
        f'xml:space="preserve">{escape(title)}</text>'
    )


def is_current() -> bool:
    """Return whether the file shows the layers and imports of today."""
    return PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == draw()


if __name__ == "__main__":
    if "--check" not in sys.argv[1:]:
        PICTURE.write_text(draw(), encoding="utf-8")
    elif not is_current():
        sys.exit(f"{PICTURE.name} is out of date: run python docs/images/{Path(__file__).name}.")
