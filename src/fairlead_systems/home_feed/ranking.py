"""How a page is put in order: the model in line, the model off the loop, or the heuristic behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fairlead.inference import HeuristicScorer, Scheduler
from fairlead.inference.onnx import OnnxScorer
from fairlead_systems.home_feed.answer import rank, request_features
from fairlead_systems.home_feed.model import DIRECTORY, HEURISTIC_WEIGHTS, SCHEMA

__all__ = ["InlineRanking", "ScheduledRanking"]


def _rows(user: str, items: Sequence[int], features: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """Model rows: the feature service's columns, then the request's, as the model's schema lists them."""
    return [(*known, *asked) for known, asked in zip(features, request_features(user, items), strict=True)]


class InlineRanking:
    """The fp32 model, called on the event loop."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._scorer = OnnxScorer.load(directory, "fp32", schema=SCHEMA)

    def rank(self, user: str, items: list[int], features: Sequence[Sequence[float]]) -> tuple[list[int], str]:
        return rank(items, self._scorer.score(_rows(user, items, features))), self._scorer.version


class ScheduledRanking:
    """The int8 model behind a scheduler, the heuristic behind both."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        scorer = OnnxScorer.load(directory, "int8", schema=SCHEMA)
        self.heuristic = HeuristicScorer(scorer.schema, HEURISTIC_WEIGHTS)
        self.scheduler = Scheduler(scorer, fallback=self.heuristic)

    async def rank(
        self, user: str, items: list[int], features: Sequence[Sequence[float]]
    ) -> tuple[list[int], str, str]:
        """Items best first, the version that ranked them, and why it was the heuristic; empty when the model did."""
        scored = await self.scheduler.score(_rows(user, items, features))
        return rank(items, scored.scores), scored.model_version, scored.reason or ""

    def close(self) -> None:
        self.scheduler.close()
