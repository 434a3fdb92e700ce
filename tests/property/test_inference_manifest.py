"""Whatever bytes lie in a model directory, reading them ends in a manifest or in one line of ours."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import FairleadError
from fairlead.inference import Manifest, load_manifest
from fairlead.inference.registry import read_model
from fairlead_systems.home_feed.model import DIRECTORY

VALID = (DIRECTORY / "manifest.json").read_bytes()
PLAIN = json.loads(VALID)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def read(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "manifest.json").write_bytes(raw)
        message = ""
        try:
            manifest = load_manifest(directory)
            assert isinstance(manifest, Manifest)
            for precision in manifest.files:
                read_model(directory, manifest, precision)
        except FairleadError as error:
            message = str(error)
        assert "\n" not in message


@settings(deadline=None)
@given(position=st.integers(0, len(VALID) - 1), patch=st.binary(max_size=6))
def test_a_patched_manifest_is_refused_in_one_line(position: int, patch: bytes) -> None:
    read(VALID[:position] + patch + VALID[position + len(patch) :])


@settings(deadline=None)
@given(name=st.sampled_from(sorted(PLAIN)), value=json_values)
def test_any_value_in_any_field_is_refused_in_one_line(name: str, value: object) -> None:
    read(json.dumps(PLAIN | {name: value}).encode())


@settings(deadline=None)
@given(name=st.sampled_from(["file", "sha256", "bytes"]), value=json_values)
def test_any_value_in_a_file_entry_is_refused_in_one_line(name: str, value: object) -> None:
    entry = PLAIN["files"]["int8"] | {name: value}
    read(json.dumps(PLAIN | {"files": {"int8": entry}}).encode())


def test_a_key_with_a_line_break_is_refused_in_one_line() -> None:
    read(json.dumps(PLAIN | {"created_from": {"\n": None}}).encode())
