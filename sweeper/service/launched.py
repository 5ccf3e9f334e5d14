"""A launched sweep as those see it who only look: what it was launched with is the truth, the file tells its name."""

import os
from collections.abc import Sequence
from typing import Any

from sweeper import database
from sweeper.config import Sweep, file_of
from sweeper.config.written import override
from sweeper.errors import ConfigError
from sweeper.service.place import Place
from sweeper.service.service import Service
from sweeper.study import Study

AnySweep = Sweep | str | os.PathLike[str]


def launched(
    sweep: Sweep | str | os.PathLike[str], overrides: Sequence[str], place: Place
) -> tuple[Service, list[str]]:
    """A launched sweep, for looking, and a line for each thing that ``sweep`` (or its file) says otherwise now.

    ``sweep`` may also be the name of a launched sweep, where there is no file of that name.
    Overrides that the launch was given count again, and those of what may change (``Sweep.FREE``) can be given anew.
    Nothing is created. Raises DatabaseError if no such sweep was launched, ConfigError for a file without a name and
    for an override that cannot be.
    """
    by_name = not isinstance(sweep, Sweep) and _is_name(sweep)
    name = sweep.name if isinstance(sweep, Sweep) else str(sweep) if by_name else Sweep.name_in(sweep, overrides)
    opened = database.open(place.database, create=False)
    study = Study.open(opened, name)
    config = dict(study.config)
    known, notes, shown = Sweep.keys(), list[str](), f"sweep {name} is shown as it was launched"
    frozen = {key: value for key, value in config.items() if key in known and key not in Sweep.FREE}
    free: dict[str, Any] = dict(config.get("free") or {})
    try:
        if isinstance(sweep, Sweep):
            now = sweep.flat()
        elif by_name:
            keys = {**frozen, **free}
            override(keys, overrides)
            now = Sweep.build(keys, name).flat()
        else:
            now = Sweep.load(sweep, [*config.get("overrides", ()), *overrides]).flat()
    except ConfigError as error:
        if overrides or not free:
            raise
        notes.append(f"{shown}, because its file cannot be read as a sweep now: {error}")
    else:
        free = {key: now[key] for key in Sweep.FREE}
        comparable = {key: value for key, value in now.items() if key in frozen}
        if changed := study.changes(comparable, [*Sweep.FREE, *(config.keys() - now.keys())]):
            notes.append(f"{shown}; what is said now does not count: {', '.join(changed)}")
    then = Sweep.build({**frozen, **free}, name)
    return Service(then, place, overrides=overrides, looking=True, launched_as=config), notes


def _is_name(sweep: str | os.PathLike[str]) -> bool:
    """Whether this can only be meant as the name of a sweep: there is no such file, and it is no path of one."""
    return not file_of(sweep).exists() and not {"/", ".", os.sep} & set(str(sweep))
