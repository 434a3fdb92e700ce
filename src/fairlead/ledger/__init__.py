"""What was decided and on what ground: the only memory of decisions, and nobody can change it unseen.

A figure in a report is worth as much as the record behind it. So evidence, decisions and frozen change files are
entries of one append-only chain: each names the hash of the one before it, so an edit, a deletion or a swap breaks a
link, and `Ledger.verify` says which. A cut at the end leaves a chain that is whole; what shows it is a head that was
kept elsewhere (`Ledger.head`).
"""

from __future__ import annotations

from fairlead.ledger.audit import AuditReport
from fairlead.ledger.decision import Decision
from fairlead.ledger.entry import Entry, Head
from fairlead.ledger.evidence import Evidence
from fairlead.ledger.frozen_change import FrozenChange
from fairlead.ledger.ledger import Ledger

__all__ = ["AuditReport", "Decision", "Entry", "Evidence", "FrozenChange", "Head", "Ledger"]
