"""A run as one self-contained HTML page.

`record` says what is on the page, `sections` builds the parts that runs share, `render` writes it.
"""
