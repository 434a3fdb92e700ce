"""The ledger: its entries, which the database itself refuses to change or to delete, and its head.

The triggers keep honest code honest: a wrong statement, a tool, a tired person. Who owns the database can drop them,
and is found by the chain (`Ledger.verify`).

Tables are written out here and not taken from the room that uses them: what ran once must not change with the code.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    whole = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "fairlead_ledger",
        sa.Column("number", whole, primary_key=True, autoincrement=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("change", sa.Text, nullable=False),
        sa.Column("metric", sa.Text, nullable=False),
    )
    # The number last: entries are read in its order, page by page, and a page that had to be sorted would cost all.
    op.create_index("fairlead_ledger_change", "fairlead_ledger", ["change", "number"])
    op.create_index("fairlead_ledger_change_kind", "fairlead_ledger", ["change", "kind", "number"])
    head = op.create_table(
        "fairlead_ledger_head",
        sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True, autoincrement=False),
        sa.Column("number", whole, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
    )
    op.bulk_insert(head, [{"one": 1, "number": 0, "hash": "0" * 64}])
    for statement in _POSTGRES if op.get_context().dialect.name == "postgresql" else _SQLITE:
        op.execute(statement)


# In SQLite an INSERT OR REPLACE deletes without a word to the triggers of DELETE, so INSERT is watched too.
_SQLITE = (
    """
    CREATE TRIGGER fairlead_ledger_insert BEFORE INSERT ON fairlead_ledger
    WHEN NEW.number IS NOT (SELECT coalesce(max(number), 0) + 1 FROM fairlead_ledger)
        OR EXISTS (SELECT 1 FROM fairlead_ledger WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: the next number and a new id are needed'); END
    """,
    """
    CREATE TRIGGER fairlead_ledger_update BEFORE UPDATE ON fairlead_ledger
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: no entry is changed'); END
    """,
    """
    CREATE TRIGGER fairlead_ledger_delete BEFORE DELETE ON fairlead_ledger
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: no entry is deleted'); END
    """,
    """
    CREATE TRIGGER fairlead_ledger_head_insert BEFORE INSERT ON fairlead_ledger_head
    BEGIN SELECT RAISE(ABORT, 'the ledger has one head'); END
    """,
    """
    CREATE TRIGGER fairlead_ledger_head_update BEFORE UPDATE ON fairlead_ledger_head
    WHEN NEW.number IS NOT OLD.number + 1 OR NEW.one IS NOT 1
    BEGIN SELECT RAISE(ABORT, 'the head of the ledger goes forward, one entry at a time'); END
    """,
    """
    CREATE TRIGGER fairlead_ledger_head_delete BEFORE DELETE ON fairlead_ledger_head
    BEGIN SELECT RAISE(ABORT, 'the head of the ledger is not deleted'); END
    """,
)

_POSTGRES = (
    """
    CREATE FUNCTION fairlead_ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'the ledger is append-only: % of % is refused', TG_OP, TG_TABLE_NAME; END $$
    """,
    """
    CREATE FUNCTION fairlead_ledger_next() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_TABLE_NAME = 'fairlead_ledger' THEN
            IF NEW.number <> (SELECT coalesce(max(number), 0) + 1 FROM fairlead_ledger) THEN
                RAISE EXCEPTION 'the ledger is append-only: the next number is needed';
            END IF;
        ELSIF NEW.number <> OLD.number + 1 OR NEW.one <> 1 THEN
            RAISE EXCEPTION 'the head of the ledger goes forward, one entry at a time';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER fairlead_ledger_insert BEFORE INSERT ON fairlead_ledger
    FOR EACH ROW EXECUTE FUNCTION fairlead_ledger_next()
    """,
    """
    CREATE TRIGGER fairlead_ledger_head_update BEFORE UPDATE ON fairlead_ledger_head
    FOR EACH ROW EXECUTE FUNCTION fairlead_ledger_next()
    """,
    """
    CREATE TRIGGER fairlead_ledger_update BEFORE UPDATE OR DELETE OR TRUNCATE ON fairlead_ledger
    FOR EACH STATEMENT EXECUTE FUNCTION fairlead_ledger_refuse()
    """,
    """
    CREATE TRIGGER fairlead_ledger_head_delete BEFORE INSERT OR DELETE OR TRUNCATE ON fairlead_ledger_head
    FOR EACH STATEMENT EXECUTE FUNCTION fairlead_ledger_refuse()
    """,
    # ALWAYS: also for a session that calls itself a replica, where plain triggers sleep.
    "ALTER TABLE fairlead_ledger ENABLE ALWAYS TRIGGER fairlead_ledger_insert",
    "ALTER TABLE fairlead_ledger ENABLE ALWAYS TRIGGER fairlead_ledger_update",
    "ALTER TABLE fairlead_ledger_head ENABLE ALWAYS TRIGGER fairlead_ledger_head_update",
    "ALTER TABLE fairlead_ledger_head ENABLE ALWAYS TRIGGER fairlead_ledger_head_delete",
)
