"""The flag document that a run writes, as the feed's processes will read it."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from fairlead.errors import InvalidInput, UnknownFlag
from fairlead.flags import EvaluationContext, FlagSet
from fairlead.telemetry import NullSink
from fairlead.trial import Settings
from fairlead_systems.home_feed.feed import FLAG, Feed
from fairlead_systems.home_feed.mechanisms import FLAG_PREFIX, MECHANISMS, Mechanisms
from fairlead_systems.home_feed.system import _instance, flag_document, make_plan

PLAN = make_plan(Settings(ablate=("all",)))
DOCUMENT = flag_document(PLAN.arms)


def flags(document: object = DOCUMENT) -> FlagSet:
    return FlagSet.parse(json.dumps(document).encode(), source="flags.json")


def test_switches_and_their_descriptions_are_the_same_list():
    assert [field.name for field in fields(Mechanisms)] == [each.name for each in MECHANISMS]
    assert all(each.summary for each in MECHANISMS)
    assert all(getattr(Mechanisms(), each.name) is True for each in MECHANISMS)


@pytest.mark.parametrize("arm", PLAN.arms, ids=[arm.name for arm in PLAN.arms])
def test_each_arm_is_served_its_path_and_its_switches(arm):
    found = flags()
    context = EvaluationContext(targeting_key="u1", attributes={"instance": _instance(arm)})
    assert found.string(FLAG, context, "none") == arm.variant
    for mechanism in MECHANISMS:
        on = found.evaluate(FLAG_PREFIX + mechanism.name, context).value
        assert on is (mechanism.name not in arm.without), mechanism.name


def test_process_that_belongs_to_no_arm_is_served_the_control():
    context = EvaluationContext(targeting_key="u1", attributes={"instance": "somebody-else"})
    assert flags().string(FLAG, context, "none") == "control"


def test_run_without_ablations_needs_no_targeting_of_switches():
    document = flag_document(make_plan(Settings()).arms)
    context = EvaluationContext(attributes={"instance": "feed-treatment"})
    assert all(flags(document).boolean(FLAG_PREFIX + each.name, context, False) for each in MECHANISMS)


def test_feed_reads_its_own_switches():
    assert Feed(flags(), "feed-treatment", 1, NullSink()).uses == Mechanisms()
    feed = Feed(flags(), "feed-without-batching", 1, NullSink())
    assert feed.uses == Mechanisms(batching=False)


def test_without_int8_ranking_no_quantized_model_is_loaded():
    assert Feed(flags(), "feed-treatment", 1, NullSink())._scheduled is not None
    assert Feed(flags(), "feed-without-int8_ranking", 1, NullSink())._scheduled is None


def test_switch_of_the_wrong_type_is_refused_by_name():
    broken = json.loads(json.dumps(DOCUMENT))
    broken["flags"]["feed_uses_batching"] = {
        "state": "ENABLED",
        "variants": {"on": "yes", "off": "no"},
        "defaultVariant": "on",
    }
    with pytest.raises(InvalidInput, match="feed_uses_batching"):
        Feed(flags(broken), "feed-treatment", 1, NullSink())


def test_document_without_a_switch_leaves_it_on():
    partial = {"flags": {FLAG: DOCUMENT["flags"][FLAG]}}  # type: ignore[index]  # built above
    assert Feed(flags(partial), "feed-treatment", 1, NullSink()).uses == Mechanisms()


def test_document_without_the_path_is_refused_by_name():
    with pytest.raises(UnknownFlag, match="feed_path"):
        flags({"flags": {}}).require(FLAG, "string")
