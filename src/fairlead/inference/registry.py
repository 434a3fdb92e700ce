"""A model is its file and what was promised about it; the manifest holds the promises.

A truncated download, a file from last week's training or a feature renamed in serving all load without
complaint and rank badly. `manifest.json` lies beside the model files and says what they are: size and SHA-256
of each, the feature schema with its hash, and a golden batch of rows with the scores that training saw. A
driver checks all of it before the first request; whatever does not fit raises `ModelRejected`. Files are read
once, into memory, and what was hashed is what is loaded. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import msgspec

from fairlead.errors import BrokenDocument, InvalidInput, ModelRejected
from fairlead.inference.feature_schema import FeatureSchema

__all__ = [
    "CreatedFrom",
    "GoldenBatch",
    "Manifest",
    "ModelFile",
    "load_manifest",
    "read_model",
    "verify_golden",
]

MANIFEST_NAME = "manifest.json"

_MANIFEST_LIMIT = 1 << 20
_MODEL_LIMIT = 256 << 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NEXT_STEP = "restore the model directory from the release, or train again"


class ModelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stored form of the model."""

    file: str
    """Plain file name in the manifest's own directory."""
    sha256: str
    bytes: int


class CreatedFrom(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What made the model, enough to make it again."""

    script: str
    seed: int
    libraries: dict[str, str] = {}
    """Library name to version at training time."""


class GoldenBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows with the scores that each file gave them at training time."""

    rows: list[list[float]]
    scores: dict[str, list[float]]
    """Precision to one score per row."""
    tolerance: dict[str, float]
    """Precision to the largest absolute difference that another processor's rounding may cause."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that is promised about a model."""

    format: int
    """Version of this document's schema: 1."""
    name: str
    version: str
    created_from: CreatedFrom
    opset: int
    features: list[str]
    features_version: str
    features_hash: str
    files: dict[str, ModelFile]
    """Precision ("fp32", "int8") to file."""
    golden: GoldenBatch
    metrics: dict[str, float] = {}
    """Figures of the training run on held-out data, as computed by the script."""

    @property
    def schema(self) -> FeatureSchema:
        return FeatureSchema(names=tuple(self.features), version=self.features_version)


def load_manifest(directory: str | Path) -> Manifest:
    """The manifest of the model in `directory`, checked against itself; the model files are not read yet.

    Raises BrokenDocument if it is missing, larger than 1 MiB or not such a document, ModelRejected if its
    feature hash does not belong to its feature names.
    """
    path = Path(directory) / MANIFEST_NAME
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MANIFEST_LIMIT + 1)
    except OSError as error:
        raise BrokenDocument(f"{path}: cannot be read ({error.strerror or error}): {_NEXT_STEP}") from error
    if len(raw) > _MANIFEST_LIMIT:
        raise BrokenDocument(
            f"{path}: larger than {_MANIFEST_LIMIT} bytes, so it is no manifest: {_NEXT_STEP}"
        )
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
        if manifest.format != 1:
            raise BrokenDocument(
                f"{path}: format {manifest.format} is unknown, this version reads 1: {_NEXT_STEP}"
            )
        schema = manifest.schema
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # A key of the file may stand in it, and hold a line break.
        reason = " ".join(str(error).split())
        raise BrokenDocument(f"{path}: {reason}: {_NEXT_STEP}") from error
    except InvalidInput as error:
        raise BrokenDocument(
            str(error) if str(path) in str(error) else f"{path}: {error}: {_NEXT_STEP}"
        ) from error
    if schema.hash != manifest.features_hash:
        raise ModelRejected(
            f"{path}: feature schema hash: expected {manifest.features_hash:.64}, found {schema.hash}: "
            f"{_NEXT_STEP}"
        )
    return manifest


def read_model(directory: str | Path, manifest: Manifest, precision: str) -> bytes:
    """The bytes of one model file, after their size and SHA-256 were found to be as promised.

    Raises InvalidInput for a precision the manifest does not list, ModelRejected for anything else.
    """
    entry = manifest.files.get(precision)
    if entry is None:
        raise InvalidInput(
            f"precision {precision!r:.40}: {manifest.name} has {', '.join(sorted(manifest.files))}"
        )
    if not _PLAIN_NAME.fullmatch(entry.file):
        raise ModelRejected(f"{entry.file!r:.80}: not a plain file name, so it may lie outside: {_NEXT_STEP}")
    path = Path(directory) / entry.file
    if not 0 < entry.bytes <= _MODEL_LIMIT:
        raise ModelRejected(
            f"{path}: {entry.bytes} bytes promised, 1 to {_MODEL_LIMIT} are accepted: {_NEXT_STEP}"
        )
    try:
        with path.open("rb") as stream:
            raw = stream.read(entry.bytes + 1)
    except OSError as error:
        raise ModelRejected(f"{path}: cannot be read ({error.strerror or error}): {_NEXT_STEP}") from error
    found = hashlib.sha256(raw).hexdigest()
    if len(raw) != entry.bytes or found != entry.sha256:
        size = f"{len(raw)} bytes" if len(raw) <= entry.bytes else f"more than {entry.bytes} bytes"
        raise ModelRejected(
            f"{path}: sha256: expected {entry.sha256:.64} ({entry.bytes} bytes), "
            f"found {found} ({size}): {_NEXT_STEP}"
        )
    return raw


def verify_golden(manifest: Manifest, precision: str, found: Sequence[float], where: str) -> None:
    """Raises ModelRejected unless `found` are the golden scores within their tolerance."""
    expected = manifest.golden.scores.get(precision, [])
    tolerance = manifest.golden.tolerance.get(precision, 0.0)
    if not expected or len(expected) != len(manifest.golden.rows) or len(found) != len(expected):
        raise ModelRejected(
            f"{where}: golden batch: {len(manifest.golden.rows)} rows, {len(expected)} expected and "
            f"{len(found)} computed scores: {_NEXT_STEP}"
        )
    for number, (promised, computed) in enumerate(zip(expected, found, strict=True)):
        if not (isfinite(computed) and abs(computed - promised) <= tolerance):
            raise ModelRejected(
                f"{where}: golden batch row {number}: expected {promised:.6g} ± {tolerance:g}, "
                f"found {computed:.6g}: {_NEXT_STEP}"
            )
