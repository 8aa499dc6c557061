"""The notebook view of a data set: its summary, a few samples, and the number of samples per class."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from dfq_plugins.inputs import stacked
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dfq_plugins.types import Batch, Specification

SHOWN = 16
COLUMNS = 8
TILE = 64
"""Side of one image in pixels."""

POINTS = 200
"""Maximum number of points in a signal's line."""

COLORS = 3


def dataset_html(summary: Mapping[str, object], body: str) -> str:
    """Return a data set as self-contained HTML: a table of its summary, then `body`."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(v))}</td></tr>" for name, v in summary.items()
    )
    return f"<div><table><caption>SyntheticDataset</caption>{rows}</table>{body}</div>"


def samples_html(samples: list[Batch], spec: Specification) -> str:
    """Return samples as one image per input if they are images or volumes, else as line plots."""
    labels = [None if sample.labels is None else int(sample.labels) for sample in samples]
    inputs = stacked([sample.inputs for sample in samples])
    if isinstance(spec, InputSpec):
        return _input_html(inputs, spec, labels)
    return "".join(
        f"<p>{html.escape(name)}</p>{_input_html(inputs[name], one, labels)}" for name, one in spec.inputs.items()
    )


def _input_html(inputs: Tensor, spec: InputSpec, labels: list[int | None]) -> str:
    raw = torch.from_numpy(raw_values(inputs.numpy(), spec)).float()
    if len(spec.shape) in {3, 4}:
        planes = raw if raw.ndim == 4 else raw[:, :, raw.shape[2] // 2]  # noqa: PLR2004  the middle slice of a volume
        return _image_grid(planes, labels)
    return _line_plots(raw.flatten(1) if raw.ndim == 2 else raw[:, 0], labels)  # noqa: PLR2004  (samples, features)


def raw_values(inputs: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Denormalize inputs `(samples, *shape)` and scale them to 0..1, by the valid range if it is known.

    >>> from dfq_plugins.types import InputSpec
    >>> raw_values(np.zeros((1, 1, 2), np.float32), InputSpec((1, 2), (64.0,), (32.0,), (0.0, 256.0)))
    array([[[0.25, 0.25]]])
    """
    column = (-1,) + (1,) * (len(spec.shape) - 1)
    raw = np.nan_to_num(inputs.astype(np.float64))
    if spec.mean is not None and spec.std is not None:
        raw = raw * np.reshape(spec.std, column) + np.reshape(spec.mean, column)
    low, high = spec.value_range or (float(raw.min(initial=0.0)), float(raw.max(initial=0.0)))
    return np.asarray((raw - low) / (high - low or 1.0)).clip(0.0, 1.0)


def _image_grid(planes: Tensor, labels: list[int | None]) -> str:
    """Return images `(samples, channels, height, width)` with values 0 to 1 as a grid in one PNG."""
    columns = min(COLUMNS, len(planes))
    grid = Image.new("RGB", (columns * TILE, -(-len(planes) // columns) * TILE), "white")
    for number, plane in enumerate(planes):
        shown = plane[:COLORS] if len(plane) >= COLORS else plane[:1].expand(COLORS, -1, -1)
        pixels = (shown * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        tile = Image.fromarray(pixels).resize((TILE - 2, TILE - 2), Image.Resampling.NEAREST)
        grid.paste(tile, (number % columns * TILE + 1, number // columns * TILE + 1))
    buffer = io.BytesIO()
    grid.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{_caption("images", labels)}" style="max-width:100%" src="data:image/png;base64,{data}">'


def _line_plots(signals: Tensor, labels: list[int | None]) -> str:
    """Return signals `(samples, length)` with values 0 to 1 as small line plots."""
    width, height = 2 * TILE, TILE // 2
    plots = []
    for signal in signals:
        kept = signal[:: max(1, len(signal) // POINTS)].tolist()
        step = width / max(len(kept) - 1, 1)
        points = " ".join(f"{index * step:.1f},{height * (1 - value):.1f}" for index, value in enumerate(kept))
        plots.append(
            f'<svg width="{width}" height="{height}" style="margin:2px"><polyline points="{points}" fill="none" '
            'stroke="currentColor"/></svg>'
        )
    return f'<div role="img" aria-label="{_caption("signals", labels)}">{"".join(plots)}</div>'


def _caption(kind: str, labels: list[int | None]) -> str:
    known = [str(label) for label in labels if label is not None]
    return f"the first {len(labels)} {kind}" + (f", with classes {', '.join(known)}" if known else "")


def class_counts_html(labels: Tensor) -> str:
    """Return the number of samples per class as HTML, the most frequent class first."""
    counts = sorted(enumerate(labels.bincount().tolist()), key=lambda pair: -pair[1])
    named = ", ".join(f"{label}: {count}" for label, count in counts[:10] if count)
    more = sum(1 for _, count in counts[10:] if count)
    return f"<p>Samples per class: {named}{f' and {more} more classes' if more else ''}</p>"
