"""Tables, figures and self-contained HTML pages from evaluated runs; everything takes plain arrays and dictionaries."""

from sdecor.report.figures import figure_curves, figure_differences, figure_training
from sdecor.report.gallery import gallery_data
from sdecor.report.maps import figure_methods, figure_side_by_side
from sdecor.report.page import html_report
from sdecor.report.style import save_figure
from sdecor.report.table import config_differences, terminal_table
from sdecor.report.wording import format_value

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
    "save_figure",
    "terminal_table",
]
