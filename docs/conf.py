"""Sphinx settings: MyST pages, reference from docstrings, furo in light and dark."""

from importlib import metadata

project = "dfq-plugins"
author = "the dfq-plugins authors"
project_copyright = "the dfq-plugins authors, Apache-2.0"
release = metadata.version("dfq-plugins")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build", "plugins", "LICENSE"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

default_role = "code"  # docstrings set names in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures show them as written; docstrings say what they mean
autodoc_default_options = {"exclude-members": "__init__, __new__"}
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes within the description of their class

html_theme = "furo"
html_title = "dfq-plugins"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"footer_icons": []}


def _skip_fields(_app: object, _what: str, _name: str, member: object, _skip: object, _options: object) -> bool | None:
    """Leave out the fields of named tuples, which have no text of their own."""
    return True if str(getattr(member, "__doc__", "")).startswith("Alias for field number") else None


def setup(app: object) -> None:
    app.connect("autodoc-skip-member", _skip_fields)  # type: ignore[attr-defined]
