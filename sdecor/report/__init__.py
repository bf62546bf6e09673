"""Tables, figures and self-contained HTML pages from evaluated runs; everything takes plain arrays and dictionaries."""

from sdecor.report.figures import (
    figure_curves,
    figure_differences,
    figure_side_by_side,
    figure_training,
    save_figure,
)
from sdecor.report.html import html_report
from sdecor.report.page import run_report
from sdecor.report.table import config_differences, format_value, terminal_table

__all__ = [
    "config_differences",
    "figure_curves",
    "figure_differences",
    "figure_side_by_side",
    "figure_training",
    "format_value",
    "html_report",
    "run_report",
    "save_figure",
    "terminal_table",
]
