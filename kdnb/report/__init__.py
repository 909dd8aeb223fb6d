"""Results as files, and what follows from them: tables, the ledger of claims, pages, the site."""

from kdnb.report import labels, ledger, methods, names, shares, systems
from kdnb.report.claims import CLAIMS, PAPERS
from kdnb.report.labels import keep as save_labels
from kdnb.report.methods import keep as save_methods
from kdnb.report.pages import points, records, save, save_figure, save_table, written
from kdnb.report.results import distillations
from kdnb.report.results import load as load_results
from kdnb.report.verdicts import RULES, VERDICTS

__all__ = [
    "CLAIMS",
    "PAPERS",
    "RULES",
    "VERDICTS",
    "distillations",
    "labels",
    "ledger",
    "load_results",
    "methods",
    "names",
    "points",
    "records",
    "save",
    "save_figure",
    "save_labels",
    "save_methods",
    "save_table",
    "shares",
    "systems",
    "written",
]
