"""One sweep with its data set, study, store and MLflow experiment: launching it, training it, its plan, status, answer.

The command line only reads options, calls this package and prints. A script can call it in the same way::

    service = Service(Sweep.load("jobs/digits.yaml"), Place())
    service.launch()
    service.pick().to_dict()
"""

from sweeper.service.place import Place, SweepSummary, launched, sweeps
from sweeper.service.plan import Plan
from sweeper.service.service import Service
from sweeper.service.status import Status

__all__ = ["Place", "Plan", "Service", "Status", "SweepSummary", "launched", "sweeps"]
