"""`dfq --version`: installed versions, read from package metadata without importing the packages."""

from __future__ import annotations

import platform
import re

import click

import dfq_plugins

_UNINTERESTING = re.compile(r"""extra\s*==\s*['"](test|docs)['"]""")

_OURS = {"dfq-plugins", "editables"}
"""Not listed: this package, which is already printed, and a dependency of editable installs."""


def print_versions(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    """Print the versions of dfq-plugins, Python, and every installed dependency."""
    if not value or context.resilient_parsing:
        return
    click.echo(f"dfq-plugins {dfq_plugins.__version__}")
    click.echo(f"Python {platform.python_version()}")
    for name, version in found_versions(_requirements()).items():
        click.echo(f"{name} {version}")
    context.exit()


def found_versions(requirements: list[str]) -> dict[str, str]:
    """Return name and version of each required distribution that is installed, except those for tests and docs.

    >>> list(found_versions(["click>=8.1", "no-such-package; extra == 'all'", "pytest>=8; extra == 'test'"]))
    ['click']
    """
    wanted = [text for text in requirements if not _UNINTERESTING.search(text)]
    names = dict.fromkeys(re.split(r"[\s\[;<>=!~(]", text, maxsplit=1)[0] for text in wanted)
    versions = {name: _version(name) for name in names if name not in _OURS}
    return {name: version for name, version in versions.items() if version}


def _requirements() -> list[str]:
    from importlib import metadata  # noqa: PLC0415  would slow down --help

    try:
        return metadata.requires("dfq-plugins") or []
    except metadata.PackageNotFoundError:  # a checkout on the path that was never installed
        return []


def _version(name: str) -> str | None:
    from importlib import metadata  # noqa: PLC0415  would slow down --help

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
