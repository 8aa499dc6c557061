"""The demo's output folder: what it may hold, and the removal of an earlier demo's data sets."""

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
    """Create the demo's folder, or take over one that holds an earlier demo and nothing else.

    Raises:
        DataError: the folder holds something that the demo did not write, or cannot be created.
    """
    if output.is_dir():
        foreign = sorted(path.name for path in output.iterdir() if path.name not in KNOWN and not is_own_leftover(path))
        if foreign:
            more = "" if len(foreign) == 1 else f" and {len(foreign) - 1} more"
            raise DataError(
                f"The demo writes into an empty folder or over an earlier demo, and {output} holds "
                f"{foreign[0]!r}{more}, which no demo wrote. Choose another output folder."
            )
    create_folder(output)


def discard_data_set(folder: Path) -> None:
    """Remove the data set of an earlier demo; a folder that is none stays, and synthesis then refuses it."""
    if (folder / MANIFEST_FILE).is_file():
        with explained(folder):
            shutil.rmtree(folder)
