"""What asking a flag costs: one percentage rollout behind one targeting rule, for one user who is in it.

Peers run their cheapest documented form: growthbook a forced value with coverage on one instance whose attributes are
already set, openfeature-sdk its in-memory provider with a hand-written evaluator that does nothing but this rule.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import xxhash
from growthbook import GrowthBook
from openfeature import api
from openfeature.evaluation_context import EvaluationContext as OpenFeatureContext
from openfeature.flag_evaluation import FlagResolutionDetails
from openfeature.flag_evaluation import Reason as OpenFeatureReason
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

from bench.harness import Arm, Bar, interleave, ratio
from fairlead.flags import EvaluationContext, ExposureLog, FlagSet
from fairlead.telemetry import NullSink

__all__ = ["bars"]

COUNTRIES = ["DE", "FR", "NL"]
DOCUMENT = {
    "flags": {
        "feed_path": {
            "state": "ENABLED",
            "variants": {"control": "control", "treatment": "treatment"},
            "defaultVariant": "control",
            "targeting": {
                "if": [
                    {"in": [{"var": "country"}, COUNTRIES]},
                    {
                        "bucket": {
                            "by": "targetingKey",
                            "salt": "feed_path",
                            "algo": "xxh32/10000@1",
                            "slots": [["treatment", 0, 2500], ["control", 5000, 7500]],
                        }
                    },
                ]
            },
        }
    }
}


IMPORTED = {
    "by": "targetingKey",
    "salt": "feed_path",
    "algo": "murmur3/10000@flagd-v2",
    "slots": [["treatment", 0, 10_000]],
}
"""A draw that was imported from flagd, with everybody in it: what its hash costs."""


def _imported() -> bytes:
    targeting = {"if": [{"in": [{"var": "country"}, COUNTRIES]}, {"bucket": IMPORTED}]}
    return json.dumps(
        {"flags": {"feed_path": DOCUMENT["flags"]["feed_path"] | {"targeting": targeting}}}
    ).encode()


def _fairlead(
    user: str, exposures: ExposureLog | None = None, document: bytes = json.dumps(DOCUMENT).encode()
) -> Callable[[], str]:
    flags = FlagSet.parse(document, exposures=exposures)
    context = EvaluationContext(targeting_key=user, attributes={"country": "FR"})
    return lambda: flags.string("feed_path", context, "none")


def _openfeature(user: str) -> Callable[[], str]:
    countries = frozenset(COUNTRIES)

    def evaluator(flag: InMemoryFlag[str], context: OpenFeatureContext) -> FlagResolutionDetails[str]:
        key, variant = context.targeting_key or "", "control"
        drawn = context.attributes.get("country") in countries
        if drawn and xxhash.xxh32_intdigest(b"feed_path:" + key.encode()) % 10_000 < 2500:
            variant = "treatment"
        return FlagResolutionDetails(
            value=flag.variants[variant], reason=OpenFeatureReason.TARGETING_MATCH, variant=variant
        )

    variants = {"control": "control", "treatment": "treatment"}
    flag = InMemoryFlag(default_variant="control", variants=variants, context_evaluator=evaluator)
    api.set_provider(InMemoryProvider({"feed_path": flag}))
    client = api.get_client()
    context = OpenFeatureContext(user, {"country": "FR"})
    return lambda: client.get_string_value("feed_path", "none", context)


def _growthbook(user: str) -> tuple[Callable[[], str], GrowthBook]:
    rule = {
        "condition": {"country": {"$in": COUNTRIES}},
        "coverage": 0.25,
        "hashAttribute": "id",
        "seed": "feed_path",
        "hashVersion": 2,
        "force": "treatment",
    }
    book = GrowthBook(
        attributes={"id": user, "country": "FR"},
        features={"feed_path": {"defaultValue": "control", "rules": [rule]}},
    )
    return lambda: book.get_feature_value("feed_path", "none"), book


def _treated_everywhere() -> str:
    """A user whom both hashes put into the rollout, so that no arm takes a shorter way out."""
    for number in range(1000):
        user = f"user-{number}"
        ask, book = _growthbook(user)
        theirs = ask()
        book.destroy()
        if theirs == _fairlead(user)() == "treatment":
            return user
    raise AssertionError("no user is in both rollouts: the rules above disagree with the hashes")


def _arm(ask: Callable[[], str]) -> Arm:
    assert ask() == "treatment"

    def run(n: int) -> None:
        for _ in range(n):
            ask()

    return run


def bars(quick: bool) -> list[Bar]:
    """The flag bars of the design: one evaluation, and how many of ours a peer's takes."""
    user = _treated_everywhere()
    growthbook, book = _growthbook(user)
    try:
        timings = interleave(
            {
                "fairlead": _arm(_fairlead(user)),
                "fairlead with exposures": _arm(_fairlead(user, ExposureLog(NullSink()))),
                "fairlead, imported from flagd": _arm(_fairlead(user, document=_imported())),
                "openfeature-sdk": _arm(_openfeature(user)),
                "growthbook": _arm(growthbook),
            },
            n=2_000 if quick else 20_000,
            rounds=7 if quick else 15,
        )
    finally:
        book.destroy()
        api.clear_providers()
    ours = timings["fairlead with exposures"]
    figures = {f"{name}_us": timing.median * 1e6 for name, timing in timings.items()}
    low, high = ours.spread
    rounds = len(ours.rounds)
    found = [
        Bar(
            what="flag evaluation, percentage and targeting, exposure remembered",
            value=ours.median * 1e6,
            limit=2.0,
            unit="µs",
            n=rounds,
            spread=(low * 1e6, high * 1e6),
            figures=figures,
        )
    ]
    for peer, limit in (("openfeature-sdk", 5.0), ("growthbook", 3.0)):
        # Peers report no exposure here, so ours reports none either.
        times, spread = ratio(timings[peer], timings["fairlead"])
        found.append(
            Bar(
                what=f"flag evaluation, {peer} against ours",
                value=times,
                limit=limit,
                at_most=False,
                unit="×",
                n=rounds,
                spread=spread,
            )
        )
    return found
