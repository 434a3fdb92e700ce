"""Made users: everybody whom both arms served is in the experiment, however unevenly a run ended."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fairlead.lab import Ending, Samples
from fairlead.trial import Settings
from fairlead_systems.home_feed.system import flag_document, make_plan
from fairlead_systems.home_feed.users import respond


def served(pages: list[int]) -> Samples:
    """Each user's pages, all answered at once."""
    user = np.repeat(np.arange(len(pages)), pages)
    n = len(user)
    return Samples(
        offset=np.arange(n) / 10,
        lag=np.zeros(n),
        latency=np.full(n, 0.1),
        status=np.full(n, 200, dtype=np.int16),
        ending=np.full(n, Ending.OK, dtype=np.uint8),
        failure=np.zeros(n, dtype=np.uint8),
        key=np.zeros(n, dtype=np.int64),
        user=user,
    )


def test_users_with_other_numbers_of_pages_in_each_arm_are_users(tmp_path: Path) -> None:
    settings = Settings()
    (tmp_path / "flags.json").write_text(json.dumps(flag_document(make_plan(settings).arms)))
    # 1 and 2 share no bit; the last user of treatment never came to control.
    arms = {"control": served([1, 2, 0, 5]), "treatment": served([2, 1, 3, 4, 6])}
    responded = respond(arms, 1_700_000_000.0, settings, tmp_path)
    assert responded.about_units is not None
    about = responded.about_units.read_text().splitlines()[1:]
    assert [line.partition(",")[0] for line in about] == ["u0", "u1", "u3"]
