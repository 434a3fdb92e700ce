"""From candidates to a page, on lists that can be checked by eye."""

from __future__ import annotations

from fairlead_systems.home_feed.selection import (
    LABELLED,
    PAGE,
    PER_AUTHOR,
    TOP,
    WINDOW,
    first_stage,
    shortlist,
    spread,
)
from fairlead_systems.home_feed.world import AUTHORS, author_of


def test_item_that_two_sources_offer_comes_before_what_one_offers():
    assert list(shortlist({"trending": [1, 2, 3], "nearest": [3, 4]}))[:2] == [3, 1]


def test_each_candidate_is_there_once_and_no_more_than_will_be_labelled():
    offers = {"trending": list(range(60)), "in_network": list(range(30, 90)), "nearest": list(range(60))}
    found = shortlist(offers)
    assert len(found) == LABELLED


def test_shown_items_are_left_out_even_when_nothing_else_is_there():
    assert list(shortlist({"trending": [1, 2]}, shown=[1, 2])) == []


def test_seen_items_are_left_out_while_a_page_of_others_is_there():
    offers = {"trending": list(range(PAGE + 5))}
    assert list(shortlist(offers, seen=[0, 1, 2])) == list(range(3, PAGE + 5))


def test_seen_items_fill_up_a_page_that_would_be_short():
    found = shortlist({"trending": list(range(PAGE + 2))}, seen=[0, 1, 2, 3])
    assert len(found) == PAGE
    assert list(found)[:2] == [0, 1]  # the best of them


def test_first_stage_weighs_popularity_and_keeps_two_of_an_author():
    same = [7 + AUTHORS * number for number in range(4)]
    found = first_stage(dict.fromkeys([*same, 1], 1.0), {1: 1.0})
    assert found == [1, same[0], same[1]]


def test_first_stage_ends_at_what_the_model_can_rank():
    assert len(first_stage(dict.fromkeys(range(50), 1.0), {})) == TOP


def test_no_author_has_more_than_two_in_any_window_across_pages_too():
    ranked = [author + AUTHORS * number for author in range(6) for number in range(4)]
    before: list[int] = []
    for _ in range(2):
        page = spread([item for item in ranked if item not in before], before)
        before += page
    authors = [author_of(item) for item in before]
    for start in range(len(authors)):
        window = authors[start : start + WINDOW]
        assert max(window.count(author) for author in window) <= PER_AUTHOR


def test_page_ends_where_only_one_author_is_left():
    assert len(spread([AUTHORS * number for number in range(6)])) == PER_AUTHOR


def test_page_keeps_the_order_of_the_ranking_where_it_may():
    assert spread(list(range(30))) == list(range(PAGE))
