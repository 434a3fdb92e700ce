"""The journal of rollouts: entries that the database itself refuses to change, to delete, or to number twice."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    whole = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "fairlead_rollout",
        sa.Column("change", sa.Text, primary_key=True),
        sa.Column("run", whole, primary_key=True, autoincrement=False),
        sa.Column("number", whole, primary_key=True, autoincrement=False),
        sa.Column("epoch", whole, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("at_utc_seconds", sa.Double, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.create_index("fairlead_rollout_epoch", "fairlead_rollout", ["change", "epoch"])
    for statement in _POSTGRES if op.get_context().dialect.name == "postgresql" else _SQLITE:
        op.execute(statement)


_NEXT = (
    "(SELECT coalesce(max(number), 0) + 1 FROM fairlead_rollout WHERE change = NEW.change AND run = NEW.run)"
)

# In SQLite an INSERT OR REPLACE deletes without a word to the triggers of DELETE, so INSERT is watched too.
_SQLITE = (
    f"""
    CREATE TRIGGER fairlead_rollout_insert BEFORE INSERT ON fairlead_rollout
    WHEN NEW.number IS NOT {_NEXT}
    BEGIN SELECT RAISE(ABORT, 'the journal of a rollout is append-only: the next number is needed'); END
    """,
    """
    CREATE TRIGGER fairlead_rollout_update BEFORE UPDATE ON fairlead_rollout
    BEGIN SELECT RAISE(ABORT, 'the journal of a rollout is append-only: no entry is changed'); END
    """,
    """
    CREATE TRIGGER fairlead_rollout_delete BEFORE DELETE ON fairlead_rollout
    BEGIN SELECT RAISE(ABORT, 'the journal of a rollout is append-only: no entry is deleted'); END
    """,
)

_POSTGRES = (
    f"""
    CREATE FUNCTION fairlead_rollout_next() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.number <> {_NEXT} THEN
            RAISE EXCEPTION 'the journal of a rollout is append-only: the next number is needed';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE FUNCTION fairlead_rollout_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'the journal of a rollout is append-only: % of % is refused', TG_OP, TG_TABLE_NAME; END $$
    """,
    """
    CREATE TRIGGER fairlead_rollout_insert BEFORE INSERT ON fairlead_rollout
    FOR EACH ROW EXECUTE FUNCTION fairlead_rollout_next()
    """,
    """
    CREATE TRIGGER fairlead_rollout_update BEFORE UPDATE OR DELETE OR TRUNCATE ON fairlead_rollout
    FOR EACH STATEMENT EXECUTE FUNCTION fairlead_rollout_refuse()
    """,
    "ALTER TABLE fairlead_rollout ENABLE ALWAYS TRIGGER fairlead_rollout_insert",
    "ALTER TABLE fairlead_rollout ENABLE ALWAYS TRIGGER fairlead_rollout_update",
)
