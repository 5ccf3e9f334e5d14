"""Where things are."""

from dataclasses import dataclass
from pathlib import Path

RESERVE = 500_000_000


@dataclass(frozen=True)
class Place:
    """Where a sweep's things are. ``store`` is a folder or an fsspec URL; the rest lies inside it unless said."""

    store: str = "sweeper_store"
    database_url: str | None = None
    tracking_uri: str | None = None

    @property
    def folder(self) -> Path:
        """This machine's own folder: data sets laid out, journals, logs, and the embedded databases."""
        return Path("sweeper_store" if "://" in self.store else self.store).absolute()

    @property
    def database(self) -> str:
        """The study's database, SQLAlchemy's way."""
        return self.database_url or f"sqlite:///{self.folder / 'sweeper.db'}"

    @property
    def tracking(self) -> str:
        """The MLflow tracking URI."""
        return self.tracking_uri or f"sqlite:///{self.folder / 'mlflow.db'}"

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
