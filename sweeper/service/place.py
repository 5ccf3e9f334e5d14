"""Where things are."""

from dataclasses import dataclass
from pathlib import Path

from sweeper import database
from sweeper.errors import StoreError
from sweeper.store import check_url
from sweeper.tracking import check_uri

RESERVE = 500_000_000


@dataclass(frozen=True)
class Place:
    """Where a sweep's things are. ``store`` is a folder or an fsspec URL; the rest lies inside it unless said.

    Nothing is touched. Raises StoreError, DatabaseError or TrackingError, in one line, for an address that cannot be
    meant: a mistyped one must not become a folder or a file of that name.
    """

    store: str = "sweeper_store"
    database_url: str | None = None
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        check_url(self.store)
        if self.store.startswith("memory://"):
            raise StoreError(f"store {self.store!r}: the memory of a process is not shared by workers; name a folder")
        database.parse(self.database)
        check_uri(self.tracking)

    @property
    def folder(self) -> Path:
        """This machine's own folder: data sets laid out, journals, logs, and the embedded databases."""
        return Path("sweeper_store" if "://" in self.store else self.store).expanduser().absolute()

    @property
    def database(self) -> str:
        """The study's database, SQLAlchemy's way."""
        return f"sqlite:///{self.folder / 'sweeper.db'}" if self.database_url is None else self.database_url

    @property
    def tracking(self) -> str:
        """The MLflow tracking URI."""
        return f"sqlite:///{self.folder / 'mlflow.db'}" if self.tracking_uri is None else self.tracking_uri

    @property
    def reserve(self) -> int:
        """Bytes of its disk that the store of states leaves to the study and the journals, where they share it."""
        states = Path(self.snapshots)
        shared = "://" not in self.store and (not states.exists() or states.stat().st_dev == self.folder.stat().st_dev)
        return RESERVE if shared else 0

    @property
    def snapshots(self) -> str:
        """Where training states are stored."""
        return self.store if "://" in self.store else str(self.folder / "snapshots")
