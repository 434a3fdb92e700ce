"""The database of the control plane: one SQLite file by default, PostgreSQL where one machine is outgrown.

What Fairlead decides, it must remember through crashes, full disks and upgrades, and two processes must not decide at
once. So every write holds the one writer's place from its first statement to its commit, on both engines, and no
transaction needs to be tried again because another one was faster. SQLAlchemy Core speaks to both; the two files
`sqlite` and `postgres` hold all in which they differ.
"""

from __future__ import annotations

from fairlead.store.database import Database

__all__ = ["Database"]
