"""What a notebook shows: a data set with samples, and a bar while it is made."""

from __future__ import annotations

import base64
import io
import re
import sys
import types
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import dfq_plugins
from dfq_plugins.data.notebook import TILE, samples_html
from dfq_plugins.listeners.notebook import NotebookListener, in_notebook
from dfq_plugins.types import Batch, InputSpec, NoOptions, ProgressEvent


def synthetic(shape: tuple[int, ...], classes: int = 3, **settings: Any) -> dfq_plugins.SyntheticDataset:
    network = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), classes)).eval()
    spec = InputSpec(shape, value_range=(0.0, 1.0), num_classes=classes, **settings)
    return dfq_plugins.synthesize(network, spec, generator="gaussian", num_samples=20)


def picture(page: str) -> Image.Image:
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("shape", [(3, 6, 6), (1, 6, 9), (2, 5, 5), (1, 3, 4, 4)])
def test_images_and_volumes_are_shown_in_a_grid(shape: tuple[int, ...]) -> None:
    page = synthetic(shape)._repr_html_()
    assert picture(page).size == (8 * TILE, 2 * TILE)
    assert "<th>num_samples</th><td>20</td>" in page
    assert 'alt="the first 16 images, with classes ' in page


@pytest.mark.parametrize("shape", [(1, 400), (12,)])
def test_signals_and_features_are_shown_as_lines(shape: tuple[int, ...]) -> None:
    page = synthetic(shape)._repr_html_()
    lines = re.findall(r'points="([^"]+)"', page)
    assert len(lines) == 16
    assert len(lines[0].split()) == min(200, shape[-1])
    assert 'aria-label="the first 16 signals' in page


def test_each_class_is_counted() -> None:
    (text,) = re.findall(r"<p>Samples per class: (.*?)</p>", synthetic((1, 4, 4))._repr_html_())
    assert sum(int(count) for _, count in re.findall(r"(\d+): (\d+)", text)) == 20
    (text,) = re.findall(r"<p>Samples per class: (.*?)</p>", synthetic((1, 4, 4), classes=14)._repr_html_())
    assert len(re.findall(r"\d+: \d+", text)) <= 10


def test_pixels_are_shown_before_normalization() -> None:
    spec = InputSpec((1, 2, 2), mean=(100.0,), std=(50.0,), value_range=(0.0, 200.0))
    inputs = torch.tensor([[[-2.0, 2.0], [0.0, 0.0]]])  # black, white, gray, gray
    tile = picture(samples_html([Batch(inputs)], spec))
    assert [tile.getpixel(place) for place in ((4, 4), (60, 4), (4, 60))] == [(0,) * 3, (255,) * 3, (128,) * 3]


def test_a_damaged_set_says_so_instead_of_its_samples() -> None:
    data = synthetic((1, 4, 4))
    next(data.folder.glob("*.safetensors")).unlink()
    page = dfq_plugins.SyntheticDataset.open(data.folder)._repr_html_()
    assert "<th>num_samples</th><td>20</td>" in page
    assert "is missing" in page


class Kernel:
    """Stands in for IPython in a notebook: remembers what is on the screen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.screen: list[str] = []
        ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
        ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
        display.HTML = str  # type: ignore[attr-defined]
        display.display = self.display  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)

    def display(self, text: str, *, display_id: bool) -> Any:
        assert display_id
        self.screen.append(text)
        place = len(self.screen) - 1
        return types.SimpleNamespace(update=lambda new: self.screen.__setitem__(place, new))


@pytest.mark.filterwarnings("ignore:The data in")
def test_a_run_in_a_notebook_shows_a_bar_of_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    data = synthetic((1, 4, 4))
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    dfq_plugins.quantize(network, data, calibrator="torch-ao", allow_other_network=True)
    assert [re.sub("<.*?>", "", line).strip() for line in kernel.screen] == [
        "synthesize: 20 of 20",
        "calibrate: 20 of 20",
    ]


def test_bars_are_drawn_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    times = iter([0.0, 0.1, 0.3, 0.35])
    listener = NotebookListener(NoOptions(), clock=lambda: next(times))
    seen = []
    for completed in (1, 2, 3, 4):
        listener(ProgressEvent("synthesize", completed, 4))
        seen.append(re.findall(r'value="(\d)"', kernel.screen[0])[0])
    assert seen == ["1", "1", "3", "4"]


def test_outside_of_notebooks_nothing_is_shown_and_ipython_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    NotebookListener(NoOptions())(ProgressEvent("synthesize", 1, 2))
    assert "IPython" not in sys.modules
    shell = types.ModuleType("IPython")
    shell.get_ipython = lambda: None  # type: ignore[attr-defined]  # imported, but no session
    monkeypatch.setitem(sys.modules, "IPython", shell)
    assert not in_notebook()
