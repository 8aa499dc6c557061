"""Draws the three diagrams of docs/how-it-works.md: `python docs/images/diagrams.py` writes them next to this file."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

WIDTH = 400
FILLS = {"given": "#e3ecfb", "made": "#dff3e4", "work": "#fff3d6", "result": "#f3e3f7"}
LEGEND = {"given": "yours", "made": "synthetic", "work": "computed", "result": "result"}
STYLE = "font: 15px system-ui, sans-serif; fill: #1c2733"


class Box(NamedTuple):
    """A box at `(left, top)` with a title and small lines below it."""

    left: int
    top: int
    width: int
    kind: str
    title: str
    lines: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        """Title, lines and margins in pixels."""
        return 36 + 19 * len(self.lines)


class Arrow(NamedTuple):
    """An arrow through points, with a label next to its middle."""

    points: tuple[tuple[int, int], ...]
    label: str = ""
    at: tuple[int, int] = (0, 0)


INVERSION = (
    "Inversion: noise is optimized until its statistics match those stored in BatchNorm",
    385,
    (
        Box(20, 60, 150, "made", "inputs x", ("start as noise",)),
        Box(230, 60, 150, "given", "the network", ("frozen",)),
        Box(230, 170, 150, "work", "mean, variance", ("of x before each", "BatchNorm")),
        Box(20, 170, 150, "given", "statistics", ("mean and variance", "stored in training")),
        Box(110, 300, 180, "work", "divergence", ("mean over layers",)),
    ),
    (
        Arrow(((170, 88), (228, 88))),
        Arrow(((305, 115), (305, 168))),
        Arrow(((305, 244), (305, 272), (250, 298))),
        Arrow(((95, 244), (95, 272), (150, 298))),
        Arrow(((110, 328), (8, 328), (8, 88), (18, 88)), "gradient step on x", (14, 374)),
    ),
)
CALIBRATION = (
    "Calibration: the framework's own observers watch the synthetic inputs",
    445,
    (
        Box(20, 60, 160, "made", "synthetic set", ("inputs in range",)),
        Box(220, 60, 160, "given", "float network"),
        Box(110, 160, 180, "work", "observers", ("of torch.ao, Brevitas ...", "record each range")),
        Box(110, 270, 180, "work", "scale, zero point", ("the framework's choice",)),
        Box(20, 370, 160, "result", "native model", ("int8 or fewer bits",)),
        Box(220, 370, 160, "result", "checked file", ("run, then compared",)),
    ),
    (
        Arrow(((100, 115), (150, 158))),
        Arrow(((300, 96), (250, 158))),
        Arrow(((200, 234), (200, 268))),
        Arrow(((160, 325), (110, 368))),
        Arrow(((180, 398), (218, 398))),
    ),
)
FINE_TUNING = (
    "Fine-tuning: the quantized network learns from the float one",
    345,
    (
        Box(110, 60, 180, "made", "synthetic batch"),
        Box(20, 140, 160, "given", "teacher", ("float, frozen",)),
        Box(220, 140, 160, "work", "student", ("fake-quantized",)),
        Box(110, 250, 180, "work", "distance", ("of outputs and features",)),
    ),
    (
        Arrow(((160, 96), (110, 138))),
        Arrow(((240, 96), (290, 138))),
        Arrow(((100, 195), (150, 248))),
        Arrow(((300, 195), (250, 248))),
        Arrow(((290, 278), (394, 278), (394, 168), (382, 168)), "weight update", (276, 330)),
    ),
)


def draw(title: str, height: int, boxes: tuple[Box, ...], arrows: tuple[Arrow, ...]) -> str:
    """Return the diagram as SVG on its own background, so that it reads in light and dark pages."""
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            f'aria-label="{escape(title)}" style="{STYLE}">'
        ),
        (
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto">'
            '<path d="M0 0 8 4 0 8z" fill="#56616d"/></marker></defs>'
        ),
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
    ]
    kinds = list(dict.fromkeys(box.kind for box in boxes))
    for index, kind in enumerate(kinds):
        left = 20 + index * 98
        parts.append(f'<rect x="{left}" y="18" width="16" height="16" rx="3" fill="{FILLS[kind]}" stroke="#56616d"/>')
        parts.append(f'<text x="{left + 22}" y="31" font-size="13">{LEGEND[kind]}</text>')
    for arrow in arrows:
        path = " ".join(f"{x},{y}" for x, y in arrow.points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="#56616d" stroke-width="1.6" marker-end="url(#head)"/>'
        )
        if arrow.label:
            parts.append(f'<text x="{arrow.at[0]}" y="{arrow.at[1]}" font-size="13">{escape(arrow.label)}</text>')
    parts += [_box(box) for box in boxes]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _box(box: Box) -> str:
    middle = box.left + box.width / 2
    lines = "".join(
        f'<text x="{middle}" y="{box.top + 44 + 19 * number}" text-anchor="middle" font-size="13">{escape(line)}</text>'
        for number, line in enumerate(box.lines)
    )
    return (
        f'<rect x="{box.left}" y="{box.top}" width="{box.width}" height="{box.height}" rx="8" fill="{FILLS[box.kind]}" '
        f'stroke="#56616d"/><text x="{middle}" y="{box.top + 24}" text-anchor="middle" font-weight="600">'
        f"{escape(box.title)}</text>{lines}"
    )


if __name__ == "__main__":
    for name, diagram in (("inversion", INVERSION), ("calibration", CALIBRATION), ("fine-tuning", FINE_TUNING)):
        Path(__file__).with_name(f"{name}.svg").write_text(draw(*diagram), encoding="utf-8")
