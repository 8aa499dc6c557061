"""The demo's output folder: its allowed content, and the removal of an earlier demo's data sets."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from dfq_plugins.data.manifest import MANIFEST_FILE
from dfq_plugins.errors import DataError
from dfq_plugins.storage.files import create_folder, explained, is_own_leftover

if TYPE_CHECKING:
    from pathlib import Path

DATA_FOLDER = "synthetic"
ARTIFACT_FOLDER = "artifacts"
REPORT_FILE = "report.html"
RESULT_FILE = "results.json"
KNOWN = {DATA_FOLDER, ARTIFACT_FOLDER, REPORT_FILE, RESULT_FILE}


def prepare_folder(output: Path) -> None:
    """Create the demo's folder, or reuse one that holds only an earlier demo.

    Raises:
        DataError: the folder contains something that the demo did not write, or cannot be created.
    """
    if output.is_dir():
        foreign = sorted(path.name for path in output.iterdir() if path.name not in KNOWN and not is_own_leftover(path))
        if foreign:
            more = "" if len(foreign) == 1 else f" and {len(foreign) - 1} more"
            raise DataError(
                f"The demo needs an empty folder or one with an earlier demo, but {output} contains "
                f"{foreign[0]!r}{more}, which no demo wrote. Choose another output folder."
            )
    create_folder(output)


def discard_data_set(folder: Path) -> None:
    """Remove the data set of an earlier demo; any other folder is kept, and synthesis will reject it."""
    if (folder / MANIFEST_FILE).is_file():
        with explained(folder):
            shutil.rmtree(folder)
