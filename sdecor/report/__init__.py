"""Tables, figures and self-contained HTML pages from evaluated runs; all functions take plain arrays and dictionaries.

Files:
  run              the report of an evaluation: evaluation.json, figures and page
  page, html       the page; its HTML elements
  gallery, assets  data of the page's gallery; its scripts and styles
  figures, maps    figures of numbers; figures of attribution maps
  heatmaps         time series as pictures of channels and times
  table            the table for a terminal; differences between configs
  wording, style   titles and formatted numbers; the common style of figures
"""

from sdecor.report.figures import (
    figure_curves as figure_curves,
    figure_differences as figure_differences,
    figure_training as figure_training,
)
from sdecor.report.gallery import gallery_data as gallery_data
from sdecor.report.maps import figure_methods as figure_methods, figure_side_by_side as figure_side_by_side
from sdecor.report.page import html_report as html_report
from sdecor.report.style import save_figure as save_figure
from sdecor.report.table import config_differences as config_differences, terminal_table as terminal_table
from sdecor.report.wording import format_value as format_value
