"""Pictures of schedules, and one page that says what a sweep has come to. Charts by matplotlib, page by Jinja."""

from sweeper.report.charts import Line
from sweeper.report.page import Configuration, Page, Verdict, render
from sweeper.report.traces import plot_traces, trace_table

__all__ = ["Configuration", "Line", "Page", "Verdict", "plot_traces", "render", "trace_table"]
