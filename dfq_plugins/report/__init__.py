"""A run as one self-contained HTML page.

`content` defines what a page can hold, `sections` builds the parts shared by several pages, `render` writes the page.
"""
