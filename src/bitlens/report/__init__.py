"""One page about a run, in its folder: `report.html`, which needs nothing but a browser."""

from bitlens.report.page import REPORT, write_report

__all__ = ["REPORT", "write_report"]
