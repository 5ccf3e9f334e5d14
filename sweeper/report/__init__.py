"""Pictures of schedules, and the page that says what a sweep has come to. Charts by matplotlib, the page by Jinja."""

from sweeper.report.charts import Line, plot_traces, steps_shown, trace_table
from sweeper.report.page import Configuration, Page, Verdict, render

__all__ = ["Configuration", "Line", "Page", "Verdict", "plot_traces", "render", "steps_shown", "trace_table"]
