"""Tables that the tests beside this file move: one definition, so that both engines give equal Python values."""

from __future__ import annotations

import sqlalchemy as sa

ORDERS = sa.Table(
    "orders",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("customer", sa.Text, nullable=False),
    sa.Column("cents", sa.Integer, nullable=False),
    sa.Column("paid", sa.Boolean, nullable=False),
    sa.Column("rate", sa.Float),
    sa.Column("payload", sa.LargeBinary),
)

ROWS = sa.Table(
    "rows",
    sa.MetaData(),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("amount", sa.Integer, nullable=False),
)


def create(url: str, table: sa.Table) -> None:
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    table.create(engine)
    engine.dispose()
