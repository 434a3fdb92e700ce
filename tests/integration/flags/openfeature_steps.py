"""What the sentences of OpenFeature's own suite mean, against FairleadProvider and the SDK."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.flag_evaluation import FlagEvaluationDetails, FlagEvaluationOptions
from openfeature.hook import Hook
from openfeature.provider import ProviderStatus
from openfeature.transaction_context import (
    ContextVarsTransactionContextPropagator,
    get_transaction_context,
    set_transaction_context,
    set_transaction_context_propagator,
)

from fairlead.clock import ManualClock
from fairlead.flags import FlagDelivery, FlagFile, FlagSet, write_flag_file
from fairlead.flags.httpx import HttpFlags
from fairlead.flags.openfeature import FairleadProvider
from tests.integration.flags.servers import TOKEN, FlagServer
from tests.unit.flags.documents import EMPTY

STEPS: list[tuple[re.Pattern[str], Callable[..., None]]] = []
PARSERS: dict[str, Callable[[str], Any]] = {
    "boolean": lambda text: {"true": True, "false": False}[text.lower()],
    "string": str,
    "integer": int,
    "float": float,
    "object": lambda text: json.loads(text.replace('\\"', '"')),
}
LEVELS = ("API", "Transaction", "Client", "Invocation", "Before Hooks")


def step(pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def keep(function: Callable[..., None]) -> Callable[..., None]:
        STEPS.append((re.compile(pattern), function))
        return function

    return keep


def document_of(suite: dict[str, Any]) -> bytes:
    """The suite's flags, written in the SDK's in-memory format, as a document of ours."""
    flags = {}
    for name, flag in suite.items():
        flags[name] = {
            "state": "DISABLED" if flag.get("disabled") else "ENABLED",
            "variants": flag["variants"],
            "defaultVariant": flag.get("defaultVariant"),
            "metadata": flag.get("flagMetadata") or {},
        }
        if "contextEvaluator" in flag:
            flags[name]["targeting"] = targeting_of(flag["contextEvaluator"])
    # evaluation.feature, the older part, asks a flag that test-flags.json no longer has.
    flags["context-aware"] = {
        "state": "ENABLED",
        "variants": {"internal": "INTERNAL", "external": "EXTERNAL"},
        "defaultVariant": "external",
        "targeting": targeting_of(
            "!customer && fn == 'Sulisław' && ln == 'Świętopełk' && age == 29 ? 'internal' : ''"
        ),
    }
    # And these show what reached the provider: each serves the variant that the context names under its key.
    values = [*LEVELS, *(f"{level} value" for level in LEVELS), "value"]
    for key in ("key", *LEVELS):
        flags[f"merged {key}"] = {
            "state": "ENABLED",
            "variants": {value: value for value in values},
            "defaultVariant": None,
            "targeting": {"if": [True, {"var": key}]} if key == "key" else {"var": key},
        }
    return json.dumps({"flags": flags}).encode()


def targeting_of(expression: str) -> dict[str, Any]:
    """`!a && b == 'c' && d > 1 ? 'variant' : ''` in JsonLogic."""
    condition, variant = re.fullmatch(r"(.+) \? '(.+)' : ''", expression).groups()
    tests: list[Any] = []
    for term in condition.split(" && "):
        if term.startswith("!"):
            tests.append({"!": [{"var": term[1:]}]})
        else:
            name, operator, constant = term.split(" ", 2)
            tests.append({operator: [{"var": name}, json.loads(constant.replace("'", '"'))]})
    return {"if": [{"and": tests}, variant]}


class Recorder(Hook):
    def __init__(self, name: str = "", order: list[str] | None = None) -> None:
        self.called: dict[str, Any] = {}
        self.name = name
        self.order = [] if order is None else order

    def before(self, hook_context, hints):
        self.called["before"] = hook_context
        self.order.append(f"before {self.name}")

    def after(self, hook_context, details, hints):
        self.called["after"] = details
        self.order.append(f"after {self.name}")

    def error(self, hook_context, exception, hints):
        self.called["error"] = exception

    def finally_after(self, hook_context, details, hints):
        self.called["finally"] = details


class AddsContext(Hook):
    def __init__(self, context: EvaluationContext) -> None:
        self._context = context

    def before(self, hook_context, hints):
        return self._context


class World:
    """What one scenario has set up and seen."""

    def __init__(self, document: bytes, server: FlagServer, folder: Path) -> None:
        self.document = document
        self.server = server
        self.folder = folder
        self.provider: FairleadProvider | None = None
        self.client = api.get_client()
        self.recorder = Recorder()
        self.kind = self.key = ""
        self.default: Any = None
        self.context = EvaluationContext()
        self.options = FlagEvaluationOptions()
        self.details: FlagEvaluationDetails[Any] | None = None
        self.hooks: list[Recorder] = []
        self.order: list[str] = []
        self.levels: list[str] = []
        self.before: Any = None
        self.took = 0.0

    def run(self, text: str, table: list[list[str]] | None) -> None:
        found = [(match, function) for pattern, function in STEPS if (match := pattern.fullmatch(text))]
        assert len(found) == 1, f"{len(found)} steps for {text!r}"
        match, function = found[0]
        function(self, *match.groups(), *([] if table is None else [table]))

    def register(self, source, *, wait: bool = True, **options) -> None:
        options = {"start_timeout": 5.0, **options}
        delivery = FlagDelivery(FlagSet.parse(EMPTY), source, **options)
        self.provider = FairleadProvider(delivery)
        if wait:
            api.set_provider_and_wait(self.provider)
        else:
            api.set_provider(self.provider)

    def http(self, **options) -> HttpFlags:
        return HttpFlags(self.server.url, **{"token": TOKEN, "timeout": 20.0, **options})

    def evaluate(self, asynchronously: bool = False) -> FlagEvaluationDetails[Any]:
        method = f"get_{self.kind}_details"
        arguments = (self.key, self.default, self.context, self.options)
        if not asynchronously:
            return getattr(self.client, method)(*arguments)

        async def ask() -> FlagEvaluationDetails[Any]:
            began = time.perf_counter()
            try:
                return await getattr(self.client, f"{method}_async")(*arguments)
            finally:
                self.took = time.perf_counter() - began

        return asyncio.run(ask())

    def parsed(self, text: str) -> Any:
        return PARSERS[self.kind](text)

    def close(self) -> None:
        self.server.resume()
        api.shutdown()


# Providers, as they come to be in life.


@step("a stable provider(?: with retrievable context is registered)?")
def stable(world: World) -> None:
    path = world.folder / "flags.json"
    write_flag_file(path, world.document)
    world.register(FlagFile(path))


@step("a not ready provider")
def not_ready(world: World) -> None:
    world.server.pause()
    world.register(world.http(), wait=False, start_timeout=20.0)


@step("an? error provider")
def erring(world: World) -> None:
    world.register(HttpFlags("http://127.0.0.1:1/flags"), wait=False)
    wait_for(ProviderStatus.ERROR, world)


@step("a fatal provider")
def fatal(world: World) -> None:
    world.register(world.http(token="of-somebody-else"), wait=False)
    wait_for(ProviderStatus.FATAL, world)


@step("a stale provider")
def stale(world: World) -> None:
    kept = world.folder / "kept"
    FlagDelivery(FlagSet.parse(EMPTY), last_known_good=kept, clock=ManualClock()).receive(world.document)
    world.register(HttpFlags("http://127.0.0.1:1/flags"), last_known_good=kept)
    wait_for(ProviderStatus.STALE, world)


def wait_for(status: ProviderStatus, world: World) -> None:
    end = time.monotonic() + 10.0
    while world.client.get_provider_status() is not status and time.monotonic() < end:
        time.sleep(0.002)


@step('the provider status should be "(.+)"')
def has_status(world: World, status: str) -> None:
    assert world.client.get_provider_status().value == status


# Given a flag, a context, hooks.


@step('an? (.+)-flag with key "(.+)" and a fallback value "(.*)"')
def flag(world: World, kind: str, key: str, default: str) -> None:
    world.kind, world.key = kind.lower(), key
    world.default = world.parsed(default)


@step('a context containing a key "(.+)", with type "(.+)" and with value "(.*)"')
def context_entry(world: World, key: str, kind: str, value: str) -> None:
    world.context = world.context.merge(EvaluationContext(attributes={key: PARSERS[kind.lower()](value)}))


@step('a context containing a key "(.+)" with null value')
def null_entry(world: World, key: str) -> None:
    world.context = world.context.merge(EvaluationContext(attributes={key: None}))


@step("a client with added hook")
def client_hook(world: World) -> None:
    world.client.add_hooks([world.recorder])


@step("evaluation options containing specific hooks")
def option_hooks(world: World) -> None:
    world.hooks = [Recorder("first", world.order), Recorder("second", world.order)]
    world.options = FlagEvaluationOptions(hooks=list(world.hooks))


@step("an evaluation context with modifiable data")
def modifiable(world: World) -> None:
    world.context = EvaluationContext("user-1", {"list": [1, 2], "map": {"a": {"b": 1}}})
    world.before = copy.deepcopy(world.context)


# When it is evaluated.


@step("the flag was evaluated with details(?: using the evaluation options)?")
def evaluated(world: World) -> None:
    world.details = world.evaluate()


@step("the flag was evaluated with details asynchronously")
def evaluated_asynchronously(world: World) -> None:
    world.details = world.evaluate(asynchronously=True)


# Then.


@step('the resolved details value should be "(.*)"')
def resolved(world: World, value: str) -> None:
    assert same(world.details.value, world.parsed(value))


def same(found: object, expected: object) -> bool:
    return found == expected and type(found) is type(expected)


@step('the reason should be "(.+)"')
def reason(world: World, expected: str) -> None:
    assert world.details.reason == expected


@step('the error-code should be "(.+)"')
def error_code(world: World, expected: str) -> None:
    assert world.details.error_code.value == expected


@step('the variant should be "([^"]+)"')
def variant(world: World, expected: str) -> None:
    assert world.details.variant == expected


@step('the flag key should be "(.+)"')
def flag_key(world: World, expected: str) -> None:
    assert world.details.flag_key == expected


@step("the resolved metadata should contain")
def metadata(world: World, table: list[list[str]]) -> None:
    for key, kind, value in table[1:]:
        assert same(world.details.flag_metadata[key], PARSERS[kind.lower()](value))


@step("the resolved metadata is empty")
def no_metadata(world: World) -> None:
    assert dict(world.details.flag_metadata) == {}


@step("the specified hooks should execute during evaluation")
def hooks_ran(world: World) -> None:
    assert all({"before", "after", "finally"} <= hook.called.keys() for hook in world.hooks)


@step("the hook order should be maintained")
def hook_order(world: World) -> None:
    assert world.order == ["before first", "before second", "after second", "after first"]


@step('the "(.+)" hook should have been executed')
def hook_ran(world: World, stage: str) -> None:
    assert stage in world.recorder.called


@step('the "(.+)" hooks should be called with evaluation details')
def hook_details(world: World, stages: str, table: list[list[str]]) -> None:
    for stage in stages.split(", "):
        details = world.recorder.called[stage]
        for kind, key, value in table[1:]:
            found = getattr(details, key)
            if value == "null":
                assert found is None
            else:
                assert getattr(found, "value", found) == PARSERS[kind.lower()](value)


@step("the original evaluation context should remain unmodified")
def context_stays(world: World) -> None:
    assert world.context == world.before


@step("the evaluation details should be immutable")
def details_stay(world: World) -> None:
    # The SDK's details are a plain dataclass of the caller's own; what they share with others is the metadata.
    try:
        world.details.flag_metadata["a"] = "b"
    except TypeError:
        return
    raise AssertionError("flag_metadata can be changed")


@step("the evaluation should complete without blocking")
def not_blocking(world: World) -> None:
    assert world.took < 0.1


# contextMerging.feature


def add(world: World, level: str, key: str, value: str) -> None:
    entry = EvaluationContext(attributes={key: value})
    if level == "API":
        api.set_evaluation_context(api.get_evaluation_context().merge(entry))
    elif level == "Transaction":
        set_transaction_context_propagator(ContextVarsTransactionContextPropagator())
        set_transaction_context(get_transaction_context().merge(entry))
    elif level == "Client":
        world.client.context = world.client.context.merge(entry)
    elif level == "Invocation":
        world.context = world.context.merge(entry)
    else:
        assert level == "Before Hooks"
        world.client.add_hooks([AddsContext(entry)])


@step('A context entry with key "(.+)" and value "(.+)" is added to the "(.+)" level')
def entry_at(world: World, key: str, value: str, level: str) -> None:
    add(world, level, key, value)


@step("A table with levels of increasing precedence")
def levels(world: World, table: list[list[str]]) -> None:
    world.levels = [row[0] for row in table]


@step(
    'Context entries for each level from API level down to the "(.+)" level, with key "(.+)" and value "(.+)"'
)
def entries_down_to(world: World, last: str, key: str, value: str) -> None:
    assert value == last
    for level in world.levels[: world.levels.index(last) + 1]:
        add(world, level, key, level)


@step("Some flag was evaluated")
def some_flag(world: World) -> None:
    """Which one is known when a key is asked for."""


@step('The merged context contains an entry with key "(.+)" and value "(.+)"')
def merged(world: World, key: str, value: str) -> None:
    world.kind, world.key, world.default = "string", f"merged {key}", "none"
    assert world.evaluate().value == value


# evaluation.feature, the older part


@step(
    'an? (\\w+) flag with key "(.+)" is evaluated with (?:(details) and )?(?:a )?(null )?default value ?"?([^"]*)"?'
)
def evaluated_with(world: World, kind: str, key: str, _: str | None, null: str | None, default: str) -> None:
    world.kind, world.key = kind, key
    world.default = None if null else world.parsed(default)
    world.details = world.evaluate()


@step('the resolved (boolean|string|integer|float) value should be "?([^"]*)"?')
def older_value(world: World, kind: str, value: str) -> None:
    assert same(world.details.value, PARSERS[kind](value))


@step(
    'the resolved (boolean|string|integer|float) details value should be "?([^",]*)"?, the variant should be "(.+)", '
    'and the reason should be "(.+)"'
)
def older_details(world: World, kind: str, value: str, variant: str, reason: str) -> None:
    assert same(world.details.value, PARSERS[kind](value))
    assert (world.details.variant, world.details.reason) == (variant, reason)


@step(
    'the resolved object (?:details )?value should be contain fields "(.+)", "(.+)", and "(.+)", with values "(.+)", '
    '"(.+)" and (.+), respectively'
)
def older_object(world: World, *names_and_values: str) -> None:
    names, (shown, title, pages) = names_and_values[:3], names_and_values[3:]
    assert world.details.value == dict(zip(names, (shown == "true", title, int(pages)), strict=True))


@step('the variant should be "(.+)", and the reason should be "(.+)"')
def older_variant(world: World, variant: str, reason: str) -> None:
    assert (world.details.variant, world.details.reason) == (variant, reason)


@step('context contains keys "(.+)", "(.+)", "(.+)", "(.+)" with values "(.+)", "(.+)", (.+), "(.+)"')
def older_context(world: World, *names_and_values: str) -> None:
    first, last, age, customer = names_and_values[4:]
    values = (first, last, int(age), customer == "true")
    world.context = EvaluationContext(attributes=dict(zip(names_and_values[:4], values, strict=True)))


@step('a flag with key "(.+)" is evaluated with default value "(.+)"')
def older_flag(world: World, key: str, default: str) -> None:
    world.kind, world.key, world.default = "string", key, default
    world.details = world.evaluate()


@step('the resolved string response should be "(.+)"')
def older_response(world: World, value: str) -> None:
    assert world.details.value == value


@step('the resolved flag value is "(.+)" when the context is empty')
def older_empty_context(world: World, value: str) -> None:
    world.context = EvaluationContext()
    assert world.evaluate().value == value


@step('a non-existent string flag with key "(.+)" is evaluated with details and a fallback value "(.+)"')
def older_missing(world: World, key: str, default: str) -> None:
    older_flag(world, key, default)


@step('a string flag with key "(.+)" is evaluated as an integer, with details and a fallback value (.+)')
def older_wrong(world: World, key: str, default: str) -> None:
    world.kind, world.key, world.default = "integer", key, int(default)
    world.details = world.evaluate()


@step("the default (?:string|integer) value should be returned")
def older_default(world: World) -> None:
    assert same(world.details.value, world.default)


@step('the reason should indicate an error and the error code should indicate a .+ with "(.+)"')
def older_error(world: World, code: str) -> None:
    assert (world.details.reason, world.details.error_code.value) == ("ERROR", code)
