"""From candidates to a page: what both arms do, so that they differ in how they get their data and in nothing else.

    sources -> shortlist -> labels: drop what is not safe -> cheap score -> the best TOP -> model -> page

The cheap scorer looks at ranks and popularity alone, and costs microseconds; the model sees only what it left.
Everything here is a pure function.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from fairlead_systems.home_feed.world import author_of

__all__ = ["PAGE", "SOURCES", "TOP", "first_stage", "shortlist", "spread"]

SOURCES = ("trending", "in_network", "nearest")
PAGE = 12
"""Items of a page."""
TOP = 18
"""Items that the model ranks; half a page more than is shown, so that an author's third item can be passed over."""
LABELLED = 24
"""Candidates whose labels and popularity are asked for."""
WINDOW, PER_AUTHOR = 8, 2
"""At most two items of one author among any eight in a row, across pages too."""
_DAMPING = 20
"""Of reciprocal rank fusion: the first of a source counts twice its twentieth."""


def shortlist(
    offers: Mapping[str, Sequence[int]], *, shown: Collection[int] = (), seen: Collection[int] = ()
) -> dict[int, float]:
    """The best LABELLED candidates of all sources with their fused rank score, best first.

    shown: left out, whatever else there is: the reader has them above this page. seen: left out while PAGE others are
    there; where fewer are, the best of them fill the page up.

    Source: Cormack, Clarke and Buettcher 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
    Learning Methods".
    """
    hidden = frozenset(shown)
    fused: dict[int, float] = {}
    for source in SOURCES:
        for position, item in enumerate(offers.get(source, ())):
            if item not in hidden:
                fused[item] = fused.get(item, 0.0) + _DAMPING / (_DAMPING + position)
    known = frozenset(seen) & fused.keys()
    spare = max(0, PAGE - (len(fused) - len(known)))
    best: dict[int, float] = {}
    for item in sorted(fused, key=lambda item: -fused[item]):
        if item in known:
            if not spare:
                continue
            spare -= 1
        best[item] = fused[item]
        if len(best) == LABELLED:
            break
    return best


def first_stage(candidates: Mapping[int, float], popularity: Mapping[int, float]) -> list[int]:
    """The best TOP by fused rank and popularity, best first; at most PER_AUTHOR of one author."""
    order = sorted(candidates, key=lambda item: -candidates[item] * (1.0 + popularity.get(item, 0.0)))
    by_author: Counter[int] = Counter()
    best: list[int] = []
    for item in order:
        author = author_of(item)
        if by_author[author] < PER_AUTHOR:
            by_author[author] += 1
            best.append(item)
            if len(best) == TOP:
                break
    return best


def spread(ranked: Sequence[int], before: Sequence[int] = ()) -> list[int]:
    """A page of `ranked` in which no author has more than PER_AUTHOR of any WINDOW items in a row.

    before: what was shown just above it. Each place takes the best item that fits; where none does, the page ends.
    """
    recent = [author_of(item) for item in before][-(WINDOW - 1) :]
    left = list(ranked)
    page: list[int] = []
    while len(page) < PAGE:
        item = next((each for each in left if recent.count(author_of(each)) < PER_AUTHOR), None)
        if item is None:
            break
        left.remove(item)
        page.append(item)
        recent = [*recent, author_of(item)][-(WINDOW - 1) :]
    return page
