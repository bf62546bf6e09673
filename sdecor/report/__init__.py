"""Tables, figures and self-contained HTML pages from evaluated runs; everything takes plain arrays and dictionaries."""

from sdecor.report.curves import figure_curves
from sdecor.report.differences import figure_differences
from sdecor.report.gallery import gallery_data
from sdecor.report.maps import figure_methods, figure_side_by_side
from sdecor.report.measures import format_value
from sdecor.report.page import html_report
from sdecor.report.run import run_report
from sdecor.report.style import save_figure
from sdecor.report.table import config_differences, terminal_table
from sdecor.report.training import figure_training

__all__ = [
    "config_differences",
    "figure_curves",
    "figure_differences",
    "figure_methods",
    "figure_side_by_side",
    "figure_training",
    "format_value",
    "gallery_data",
    "html_report",
    "run_report",
    "save_figure",
    "terminal_table",
]
