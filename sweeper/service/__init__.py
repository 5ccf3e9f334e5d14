"""One sweep with its parts opened: what it reads, where it keeps things, and what can be said of it.

The command line is a thin skin over this module; a notebook can use it the same way::

    service = Service(Sweep.load("jobs/digits.yaml"), Place())
    service.launch()
    service.pick().to_dict()
"""

from sweeper.service.place import Place, SweepSummary, launched, sweeps
from sweeper.service.plan import Plan
from sweeper.service.service import Service
from sweeper.service.status import Status

__all__ = ["Place", "Plan", "Service", "Status", "SweepSummary", "launched", "sweeps"]
