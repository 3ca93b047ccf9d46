"""SQLite as a message broker; used through `SqliteBackend`."""

from mqkit.backends.sqlite.backend import SqliteBackend

__all__ = ["SqliteBackend"]
