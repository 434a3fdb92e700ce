"""The ranker of the home feed: its columns, its files, and the weights that rank when it cannot.

The files beside this module are made by `scripts/train_home_feed_ranker.py`, which reads the columns and
weights from here; `manifest.json` says what was promised about them.
"""

from __future__ import annotations

from pathlib import Path

from fairlead.inference import FeatureSchema

__all__ = ["DIRECTORY", "HEURISTIC_WEIGHTS", "SCHEMA"]

DIRECTORY = Path(__file__).parent
"""Where `manifest.json` and the model files lie."""

SCHEMA = FeatureSchema(
    version="1",
    names=(
        "popularity_log",
        "age_hours",
        "watch_ratio",
        "completion_rate",
        "like_rate",
        "share_rate",
        "creator_quality",
        "duration_log",
        "freshness",
        "author_affinity",
        "topic_match",
        "is_following",
        "seen_share",
        "hour_sin",
        "hour_cos",
        "position",
    ),
)
"""The item's features in the feature service's order, then those of the request: the affinity of the viewer
to the author and the topic (0-1), follows (0 or 1), share of like videos seen lately (0-1), local hour as
sine and cosine,
position in the candidate source's own order (0-1)."""

HEURISTIC_WEIGHTS = {
    "popularity_log": 0.12,
    "age_hours": -0.012,
    "watch_ratio": 0.8,
    "completion_rate": 1.0,
    "like_rate": 2.0,
    "creator_quality": 0.6,
    "author_affinity": 1.0,
    "topic_match": 1.2,
    "is_following": 0.6,
    "seen_share": -0.8,
    "position": -0.3,
}
"""Set by judgement, not fitted: what an editor would say makes a video worth showing, per unit of each
feature.
"""
