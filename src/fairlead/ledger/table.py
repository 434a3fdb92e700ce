"""The two tables of the ledger, as SQLAlchemy sees them; `store/migrations` makes them.

Beside the payload stand copies of what entries are looked up by. They prove nothing: `verify` compares them with the
payload, and reading takes every fact from the payload.
"""

from __future__ import annotations

from fairlead.errors import MissingExtra

try:
    import sqlalchemy as sa
except ImportError as missing:
    raise MissingExtra("sqlalchemy", "store") from missing

__all__ = ["HEAD", "LEDGER", "METADATA"]

METADATA = sa.MetaData()
_whole = sa.BigInteger().with_variant(sa.Integer, "sqlite")
LEDGER = sa.Table(
    "fairlead_ledger",
    METADATA,
    sa.Column("number", _whole, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("change", sa.Text, nullable=False),
    sa.Column("metric", sa.Text, nullable=False),
)
sa.Index("fairlead_ledger_change", LEDGER.c.change, LEDGER.c.number)
sa.Index("fairlead_ledger_change_kind", LEDGER.c.change, LEDGER.c.kind, LEDGER.c.number)
HEAD = sa.Table(
    "fairlead_ledger_head",
    METADATA,
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True, autoincrement=False),
    sa.Column("number", _whole, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)
