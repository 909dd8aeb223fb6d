"""Sphinx configuration of the report.

`make site` adds the pages to a copy of this folder and builds it without a network.
"""

project = "kdnb"
author = "the authors of kdnb"
copyright = "research use only, no medical advice"

extensions = ["myst_nb", "sphinxcontrib.bibtex"]
bibtex_bibfiles = ["references.bib"]

# Pages are built from executed notebooks; nothing is executed here.
nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "remove"
nb_ipywidgets_js = {}  # no widget script from a CDN; formulas are MathML and need no MathJax

html_theme = "pydata_sphinx_theme"
html_title = "kdnb: two papers, re-run"
html_static_path = ["_static"]
html_extra_path = ["extra"]  # result files that the claims page links to
html_css_files = ["ledger.css", "site.css"]
html_js_files = ["enlarge.js"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "navigation_with_keys": False,
}
html_context = {"default_mode": "auto"}
html_sidebars = {"index": []}
exclude_patterns = ["extra"]
