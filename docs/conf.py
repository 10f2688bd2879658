"""Sphinx's settings: `make docs` builds the pages in docs/ as a site, with warnings as errors."""

project = "forec_jax"
html_title = "forec_jax"
html_theme = "furo"  # light and dark, readable on a phone, no fonts from elsewhere
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4  # so that page.md#a-heading works as it does on GitHub
myst_enable_extensions = ["dollarmath"]
exclude_patterns = ["pictures"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
