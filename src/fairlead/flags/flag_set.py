"""All flags of a service, behind one object that never raises while it serves.

A flag is asked on every request, so it must not be what breaks one: an unknown flag, a wrong type, a rule
that fails, all answer with the caller's own default and say so in the evaluation. What a service cannot do
without it says at start-up, with `require`, where raising is right.

A reload replaces the whole document by one assignment or not at all: an evaluation sees the old one or the
new one, and a document that is broken, lacks a required flag, or lacks an overridden variant never replaces
a good one.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self, cast

from fairlead.errors import InvalidInput, UnknownFlag
from fairlead.flags.attribute import EvaluationContext, Read
from fairlead.flags.evaluate import CompiledFlag, Evaluation, Reason
from fairlead.flags.exposure import ExposureLog
from fairlead.flags.file import read_flag_file
from fairlead.flags.flag import (
    FlagDocument,
    FlagType,
    FlagValue,
    Place,
    closest,
    one_line,
    parse_document,
    quoted,
)
from fairlead.flags.prerequisite import check_prerequisites
from fairlead.flags.rule import Rules

__all__ = ["FlagSet"]

_FAST_TYPE: Mapping[type, FlagType] = {
    bool: FlagType.BOOLEAN,
    str: FlagType.STRING,
    int: FlagType.NUMBER,
    float: FlagType.NUMBER,
    dict: FlagType.OBJECT,
}


class _Loaded:
    """A document with its compiled flags: what a reload swaps."""

    __slots__ = ("compiled", "data", "digest", "document")

    def __init__(self, data: bytes, source: str, overrides: Mapping[str, str]) -> None:
        self.data = data
        self.document: FlagDocument = parse_document(data, source=source)
        self.digest = hashlib.sha256(data).hexdigest()
        flags = self.document.flags
        for name, variant in overrides.items():
            if name not in flags:
                raise UnknownFlag(
                    f"{source}: override of unknown flag {quoted(name)}{closest(str(name), flags)}"
                )
            if not isinstance(variant, str) or variant not in flags[name].variants:
                hint = closest(str(variant), flags[name].variants)
                raise InvalidInput(
                    f"{source}: flag {quoted(name)} has no variant {quoted(variant)} to override with{hint}"
                )
        place = Place(source).at("flags")
        check_prerequisites(flags, place)
        self.compiled: dict[str, CompiledFlag] = {}
        rules = Rules(self._variant_of)
        for name, flag in flags.items():
            self.compiled[name] = CompiledFlag(flag, place.at(name), rules, overrides.get(name))

    def _variant_of(self, name: str) -> Read:
        compiled = self.compiled  # filled before anything is asked
        return lambda context: compiled[name].decide(context).variant

    def check(self, name: str, type: FlagType) -> None:
        flag = self.document.flags.get(name)
        if flag is None:
            hint = closest(name, self.document.flags)
            raise UnknownFlag(f"{self.document.source}: no flag {quoted(name)}{hint}")
        if flag.type is not type:
            raise InvalidInput(
                f"{self.document.source}: flag {quoted(name)} is a {flag.type}, but a {type} is required; "
                f"change its variants or the code that asks"
            )


class FlagSet:
    """The flags of one document. Safe to share between threads; evaluation neither blocks nor raises.

    >>> feed = b'{"state": "ENABLED", "variants": {"a": "slow"}, "defaultVariant": "a"}'
    >>> flags = FlagSet.parse(b'{"flags": {"feed": %b}}' % feed)
    >>> flags.string("feed", EvaluationContext(targeting_key="user-1"), "none")
    'slow'
    >>> flags.evaluate("fed", EvaluationContext(), "none").reason
    <Reason.ERROR: 'ERROR'>
    """

    def __init__(
        self,
        data: bytes,
        *,
        source: str,
        path: Path | None = None,
        overrides: Mapping[str, str] | None = None,
        exposures: ExposureLog | None = None,
    ) -> None:
        self._overrides = dict(overrides or {})
        self._exposures = exposures
        self._path = path
        self._required: dict[str, FlagType] = {}
        self._reloading = threading.Lock()
        self._loaded = _Loaded(data, source, self._overrides)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        overrides: Mapping[str, str] | None = None,
        exposures: ExposureLog | None = None,
    ) -> Self:
        """The flags of a file. Blocks on the disk.

        overrides: variant by flag, forced on everybody (an ablation, a drill).
        Raises BrokenDocument; UnknownFlag or InvalidInput for an override that the document cannot serve.
        """
        path = Path(path)
        return cls(
            read_flag_file(path),
            source=one_line(str(path)),
            path=path,
            overrides=overrides,
            exposures=exposures,
        )

    @classmethod
    def parse(
        cls,
        data: bytes,
        *,
        source: str = "<bytes>",
        overrides: Mapping[str, str] | None = None,
        exposures: ExposureLog | None = None,
    ) -> Self:
        """The flags of a document in memory; `source` is what errors call it. Raises as `from_file`."""
        return cls(data, source=one_line(source), overrides=overrides, exposures=exposures)

    def without_exposures(self) -> Self:
        """The same flags as they answer now, for whoever asks on behalf of nobody: no exposure is reported."""
        quiet = type(self).__new__(type(self))
        quiet._overrides, quiet._exposures, quiet._path = self._overrides, None, self._path
        quiet._required, quiet._reloading, quiet._loaded = (
            dict(self._required),
            threading.Lock(),
            self._loaded,
        )
        return quiet

    @property
    def document(self) -> FlagDocument:
        """The document that answers now."""
        return self._loaded.document

    @property
    def digest(self) -> str:
        """SHA-256 of the document's bytes, for the record of a run."""
        return self._loaded.digest

    @property
    def data(self) -> bytes:
        """The document's bytes, as they were read."""
        return self._loaded.data

    @property
    def overrides(self) -> Mapping[str, str]:
        """The forced variant by flag."""
        return MappingProxyType(self._overrides)

    def require(self, name: str, type: FlagType | str) -> None:
        """States at start-up that the service needs this flag, of this type; later reloads must keep it.

        Raises UnknownFlag, naming the flags there are, or InvalidInput when the type is another.
        """
        try:
            wanted = FlagType(type)
        except ValueError as error:
            raise InvalidInput(
                f"{quoted(type)} is no flag type{closest(str(type), list(FlagType))}"
            ) from error
        with self._reloading:
            self._loaded.check(name, wanted)
            self._required[name] = wanted

    def reload(self) -> InvalidInput | None:
        """Reads the file again; None when its document now answers, else why the last good one still does.

        Blocks on the disk: call it through `asyncio.to_thread`. Raises InvalidInput for flags from memory.
        """
        if self._path is None:
            raise InvalidInput(
                f"{self.document.source}: read from memory, so there is no file to reload; use from_file"
            )
        path = self._path
        return self._swap(lambda: read_flag_file(path), self.document.source, None)

    def replace(
        self, data: bytes, *, source: str, check: Callable[[FlagDocument], object] | None = None
    ) -> InvalidInput | None:
        """Has `data` answer from now on; None, or the error because of which the last good document still does.

        check: asked of the document before it answers; what it raises of InvalidInput keeps it out.
        """
        return self._swap(lambda: data, one_line(source), check)

    def _swap(
        self, read: Callable[[], bytes], source: str, check: Callable[[FlagDocument], object] | None
    ) -> InvalidInput | None:
        with self._reloading:
            try:
                loaded = _Loaded(read(), source, self._overrides)
                for name, type in self._required.items():
                    loaded.check(name, type)
                if check is not None:
                    check(loaded.document)
            except InvalidInput as error:
                return error
            is_another = loaded.digest != self._loaded.digest
            self._loaded = loaded
            if is_another and self._exposures is not None:
                self._exposures.draw_anew()
        return None

    def evaluate(self, name: str, context: EvaluationContext, default: FlagValue = None) -> Evaluation:
        """The variant for this context; `default`, with the reason, where none can be served. Never raises.

        The type of `default` is the type expected of the flag; None accepts any.
        """
        try:
            flag = self._loaded.compiled.get(name)
        except TypeError:  # an unhashable name
            flag = None
        if flag is None:
            return Evaluation(default, None, Reason.ERROR, f"no flag {quoted(name)}")
        if default is not None:
            wanted = _FAST_TYPE.get(default.__class__) or FlagType.of(default)
            if wanted is not flag.type:
                detail = f"flag {quoted(name)} is a {flag.type}, not a {wanted}"
                return Evaluation(default, None, Reason.ERROR, detail)
        try:
            evaluation = flag.decide(context)
            if evaluation.variant is None:
                return Evaluation(default, None, evaluation.reason, evaluation.detail)
            if self._exposures is not None:
                self._exposures.record(name, context.targeting_key, evaluation)
        except Exception as error:  # the context is the caller's: its objects may do anything when compared
            return Evaluation(
                default, None, Reason.ERROR, f"{type(error).__name__} while evaluating {quoted(name)}"
            )
        return evaluation

    def string(self, name: str, context: EvaluationContext, default: str) -> str:
        """The value of a string flag, or `default`. Never raises."""
        return cast(str, self.evaluate(name, context, default).value)

    def boolean(self, name: str, context: EvaluationContext, default: bool) -> bool:
        """The value of a boolean flag, or `default`. Never raises."""
        return cast(bool, self.evaluate(name, context, default).value)

    def number(self, name: str, context: EvaluationContext, default: float) -> float:
        """The value of a number flag, or `default`. Never raises."""
        return cast(float, self.evaluate(name, context, default).value)

    def object(
        self, name: str, context: EvaluationContext, default: Mapping[str, object]
    ) -> Mapping[str, object]:
        """The value of an object flag, read-only, or `default`. Never raises."""
        return cast("Mapping[str, object]", self.evaluate(name, context, default).value)
