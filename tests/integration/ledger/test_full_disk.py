"""A disk that is full: an error that says so, nothing half-written, and on it goes when there is room again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fairlead.ledger import Ledger
from fairlead.store import Database

ROOT = Path(__file__).resolve().parents[3]
WRITER = """
import resource, sys
from fairlead.errors import NoSpace
from fairlead.ledger import Ledger
from fairlead.store import Database
from tests.unit.ledger.contract import figure

database = Database(sys.argv[1])
ledger = Ledger(database)
ledger.record_evidence(figure(n=0))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
recorded = 0
try:
    for n in range(1, 1_000):
        ledger.record_evidence(figure(n=n, definition="x" * 4_000))
        recorded = n
except NoSpace as error:
    print(error)
assert 0 < recorded < 999
assert ledger.verify().is_whole
assert ledger.verify().entries == recorded + 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
ledger.record_evidence(figure(n=5_000))
assert ledger.verify().entries == recorded + 2
"""


def test_a_full_disk_is_told_and_leaves_a_whole_chain(tmp_path: Path):
    path = tmp_path / "fairlead.db"
    with Database(path) as database:
        database.migrate()
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", WRITER, str(path)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(f"{path}: the disk, a quota or the file-size limit stopped a write: ")
    with Database(path) as database:
        assert Ledger(database).verify().is_whole
