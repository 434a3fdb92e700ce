"""The ONNX driver and the model of the home feed, with the real runtime."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import BrokenDocument, FairleadError, InvalidInput, ModelRejected
from fairlead.inference import (
    FeatureSchema,
    HeuristicScorer,
    Placement,
    Scheduler,
    SchedulerSettings,
    load_manifest,
)
from fairlead.inference.onnx import OnnxScorer
from fairlead_systems.home_feed.model import DIRECTORY, HEURISTIC_WEIGHTS, SCHEMA

PRECISIONS = ["fp32", "int8"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("manifest.json", "ranker.fp32.onnx", "ranker.int8.onnx"):
        shutil.copy(DIRECTORY / name, tmp_path / name)
    return tmp_path


def rewrite(directory: Path, change: Callable[[Any], object]) -> None:
    """Applies `change` to the manifest's plain form."""
    path = directory / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_home_feeds_model_loads_with_the_columns_that_serving_builds(precision: Any) -> None:
    scorer = OnnxScorer.load(DIRECTORY, precision, schema=SCHEMA)
    assert scorer.schema == SCHEMA
    assert scorer.version == f"home-feed-ranker-1-{precision}"


def test_the_model_is_small_enough_for_the_wheel_and_better_than_the_heuristic() -> None:
    manifest = load_manifest(DIRECTORY)
    assert manifest.files["fp32"].bytes <= 400_000
    assert manifest.files["int8"].bytes <= 120_000
    for measure in ("auc", "ndcg_at_10"):
        assert manifest.metrics[f"{measure}_int8"] > manifest.metrics[f"{measure}_heuristic"] + 0.03
        assert manifest.metrics[f"{measure}_int8"] > manifest.metrics[f"{measure}_fp32"] - 0.005


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_score_depends_neither_on_the_neighbours_nor_on_the_load(precision: Any) -> None:
    first, second = (OnnxScorer.load(DIRECTORY, precision) for _ in range(2))
    rows = first.manifest.golden.rows
    together = first.score(rows)
    assert together == second.score(rows) == first.score(rows)
    assert [first.score([row])[0] for row in rows] == pytest.approx(together, abs=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("where", [0, 1000, -1])
def test_one_changed_byte_is_refused_with_both_hashes(directory: Path, precision: Any, where: int) -> None:
    path = directory / f"ranker.{precision}.onnx"
    raw = bytearray(path.read_bytes())
    expected = hashlib.sha256(raw).hexdigest()
    raw[where] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ModelRejected) as caught:
        OnnxScorer.load(directory, precision)
    message = str(caught.value)
    for part in (str(path), f"expected {expected}", f"found {hashlib.sha256(raw).hexdigest()}", "restore"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda raw: b""])
def test_a_model_of_another_length_is_refused(directory: Path, change: Callable[[bytes], bytes]) -> None:
    path = directory / "ranker.int8.onnx"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelRejected, match=r"ranker\.int8\.onnx: sha256: expected"):
        OnnxScorer.load(directory)


def test_a_missing_model_file_is_named(directory: Path) -> None:
    (directory / "ranker.int8.onnx").unlink()
    with pytest.raises(ModelRejected, match=r"ranker\.int8\.onnx: cannot be read \(No such file"):
        OnnxScorer.load(directory)


def test_serving_code_with_other_columns_is_refused_before_the_first_request() -> None:
    swapped = FeatureSchema(
        names=(SCHEMA.names[1], SCHEMA.names[0], *SCHEMA.names[2:]), version=SCHEMA.version
    )
    with pytest.raises(
        ModelRejected, match=f"expected {swapped.hash} from the serving code, found {SCHEMA.hash}"
    ):
        OnnxScorer.load(DIRECTORY, schema=swapped)


def test_a_manifest_whose_columns_were_edited_is_refused(directory: Path) -> None:
    rewrite(directory, lambda document: document["features"].reverse())
    with pytest.raises(ModelRejected, match=f"feature schema hash: expected {SCHEMA.hash}, found "):
        OnnxScorer.load(directory)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_other_answers_on_the_golden_batch_are_refused(directory: Path, precision: Any) -> None:
    def nudge(document: Any) -> None:
        document["golden"]["scores"][precision][3] += 0.05

    rewrite(directory, nudge)
    with pytest.raises(ModelRejected, match=r"golden batch row 3: expected .* found"):
        OnnxScorer.load(directory, precision)


@pytest.mark.parametrize(
    "change",
    [
        lambda golden: golden["scores"].pop("int8"),
        lambda golden: golden["scores"]["int8"].pop(),
        lambda golden: (golden["scores"]["int8"].clear(), golden["rows"].clear()),
        lambda golden: golden["rows"][0].pop(),
        lambda golden: golden["tolerance"].clear() or golden["scores"]["int8"].__setitem__(0, 0.0),
    ],
)
def test_a_golden_batch_that_proves_nothing_is_refused(
    directory: Path, change: Callable[[Any], object]
) -> None:
    rewrite(directory, lambda document: change(document["golden"]))
    with pytest.raises(ModelRejected):
        OnnxScorer.load(directory)


def test_a_file_that_is_no_model_is_refused_though_its_hash_is_right(directory: Path) -> None:
    junk = b"not a model"
    (directory / "ranker.int8.onnx").write_bytes(junk)

    def promise(document: Any) -> None:
        document["files"]["int8"] |= {"bytes": len(junk), "sha256": hashlib.sha256(junk).hexdigest()}

    rewrite(directory, promise)
    with pytest.raises(ModelRejected, match="does not run") as caught:
        OnnxScorer.load(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../ranker.int8.onnx", "/etc/passwd", "a/b", "..", "", "a\0b"])
def test_a_manifest_cannot_point_outside_its_directory(directory: Path, name: str) -> None:
    rewrite(directory, lambda document: document["files"]["int8"].__setitem__("file", name))
    with pytest.raises(ModelRejected, match="not a plain file name"):
        OnnxScorer.load(directory)


@pytest.mark.parametrize("size", [0, -1, 1 << 40])
def test_a_promised_size_out_of_bounds_is_refused_before_reading(directory: Path, size: int) -> None:
    rewrite(directory, lambda document: document["files"]["int8"].__setitem__("bytes", size))
    with pytest.raises(ModelRejected, match="bytes promised"):
        OnnxScorer.load(directory)


@pytest.mark.parametrize("precision", ["int4", "", None])
def test_an_unknown_precision_names_the_known_ones(precision: Any) -> None:
    with pytest.raises(InvalidInput, match="fp32, int8"):
        OnnxScorer.load(DIRECTORY, precision)


@pytest.mark.parametrize("threads", [0, 65, True, 1.0, None])
def test_a_thread_count_out_of_range_is_refused(threads: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^threads: "):
        OnnxScorer.load(DIRECTORY, threads=threads)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"{}", b"null", b'{"format": 1e999}', b" " * ((1 << 20) + 1)],
)
def test_a_broken_manifest_is_one_line_that_names_the_file(directory: Path, raw: bytes) -> None:
    path = directory / "manifest.json"
    path.write_bytes(raw)
    with pytest.raises(BrokenDocument) as caught:
        load_manifest(directory)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.__setitem__("format", 2),
        lambda document: document.__setitem__("pickle", "x"),
        lambda document: document.__setitem__("features", []),
        lambda document: document["features"].append(document["features"][0]),
        lambda document: document.pop("golden"),
        lambda document: document["files"]["int8"].pop("sha256"),
    ],
)
def test_a_manifest_that_breaks_its_schema_is_refused(
    directory: Path, change: Callable[[Any], object]
) -> None:
    rewrite(directory, change)
    with pytest.raises(BrokenDocument):
        load_manifest(directory)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FairleadError, match=r"nowhere/manifest\.json: cannot be read"):
        OnnxScorer.load(tmp_path / "nowhere")


def test_a_session_of_one_thread_starts_no_thread() -> None:
    OnnxScorer.load(DIRECTORY)
    before = len(os.listdir("/proc/self/task"))
    scorers = [OnnxScorer.load(DIRECTORY) for _ in range(3)]
    assert len(os.listdir("/proc/self/task")) == before
    assert len(scorers) == 3


@pytest.mark.parametrize("placement", [Placement.IN_LINE, Placement.OFF_LOOP])
@pytest.mark.parametrize("threads", [1, 3])
async def test_concurrent_calls_each_get_their_own_scores(placement: Placement, threads: int) -> None:
    scorer = OnnxScorer.load(DIRECTORY, schema=SCHEMA)
    rows = scorer.manifest.golden.rows
    settings = SchedulerSettings(
        placement=placement, threads=threads, capacity=1000, timeout=30, stalled_after=30
    )
    with Scheduler(
        scorer, fallback=HeuristicScorer(SCHEMA, HEURISTIC_WEIGHTS), settings=settings
    ) as scheduler:
        parts = [rows[i % 8 : i % 8 + 5] for i in range(200)]
        answers = await asyncio.gather(*(scheduler.score(part) for part in parts))
        assert [answer.scores for answer in answers] == [scorer.score(part) for part in parts]
        assert scheduler.stats.scored == 200


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_room_is_imported_without_numpy_or_the_runtime() -> None:
    done = run_python(
        "import sys, fairlead.inference\n"
        "print([name for name in ('numpy', 'onnxruntime', 'fairlead.inference.onnx') if name in sys.modules])"
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("package", ["onnxruntime", "numpy"])
def test_a_missing_runtime_names_the_extra_that_brings_it(package: str) -> None:
    done = run_python(f"import sys; sys.modules[{package!r}] = None; import fairlead.inference.onnx")
    assert done.returncode == 1
    assert f"MissingExtra: {package} is not installed: pip install 'fairlead[inference]'" in done.stderr


BUILD = """
import asyncio, os, threading
from fairlead.inference import FeatureSchema, HeuristicScorer, Scheduler
schema = FeatureSchema(names=("a",), version="1")
class Model:
    version, calls = "1", 0
    def score(self, rows):
        Model.calls += 1
        if Model.calls > 35:
            threading.Event().wait()
        return [0.0] * len(rows)
Model.schema = schema
from fairlead.inference import Placement, SchedulerSettings
settings = SchedulerSettings(placement=Placement.OFF_LOOP)
scheduler = Scheduler(Model(), fallback=HeuristicScorer(schema, {"a": 1.0}), settings=settings)
"""


def test_a_hanging_model_does_not_keep_the_process_from_exiting() -> None:
    done = run_python(BUILD + "print(asyncio.run(scheduler.score([(2.0,)])).reason)")
    assert (done.returncode, done.stdout) == (0, "timed_out\n"), done.stderr


def test_a_forked_child_answers_with_the_fallback_and_exits() -> None:
    done = run_python(
        BUILD
        + """
child = os.fork()
if child == 0:
    print(asyncio.run(scheduler.score([(2.0,)])).reason, flush=True)
else:
    print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    assert (done.returncode, done.stdout) == (0, "forked\nchild 0\n"), done.stderr
