"""Results as files, and what follows from them: tables, claims, pages, the site."""

from kdnb.report.pages import records, save, save_figure, save_table, written
from kdnb.report.results import distillations

__all__ = ["distillations", "records", "save", "save_figure", "save_table", "written"]
