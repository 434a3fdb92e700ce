"""Trains the home feed's ranker on data it makes, and writes the model directory.

    python scripts/train_home_feed_ranker.py            train and replace the model files
    python scripts/train_home_feed_ranker.py --check    train again and compare with the files that lie there

Viewers are simulated: whether a video is watched to its end is drawn from a known, nonlinear function of 16
features. The model is a small tower whose weights all features share: each feature becomes a token of 96
numbers (a learned, piecewise linear embedding, after Gorishniy et al. 2022, "On Embeddings for Numerical
Features"), one two-layer network refines every token, a learned weighting pools them, and a head of one
hidden layer scores. Trained with Adam in numpy, exported as ONNX in float32 and, calibrated on training rows,
in int8. Calibrated and not dynamic quantisation, so that a candidate's score does not depend on which others
stand in its batch.

The same seed, libraries and kind of processor give the same bytes.
"""

from __future__ import annotations

import os

# One thread of linear algebra: sums in a fixed order are what makes two trainings equal.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import hashlib
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from fairlead.errors import FairleadError
from fairlead.inference import HeuristicScorer
from fairlead.inference.onnx import OnnxScorer
from fairlead.inference.registry import MANIFEST_NAME, CreatedFrom, GoldenBatch, Manifest, ModelFile
from fairlead_systems.home_feed.model import DIRECTORY, HEURISTIC_WEIGHTS, SCHEMA

Array = np.ndarray[Any, np.dtype[Any]]

SEED = 20_250_601
CANDIDATES = 24
TRAIN_FEEDS, TEST_FEEDS = 4_000, 1_500
EPOCHS, BATCH = 4, 256
LEARNING_RATE = 3e-3
TOKEN, INNER, HEAD = 96, 320, 64
OPSET, IR_VERSION = 17, 8
GOLDEN_ROWS = 16
# Other processors add in another order; int8 may also round a value on an edge to the neighbouring step.
TOLERANCE = {"fp32": 1e-4, "int8": 0.03}


def make_feeds(feeds: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Features, shape (feeds, 24, 16), and whether each video was watched to its end, shape (feeds, 24)."""
    shape = (feeds, CANDIDATES)
    hour = rng.uniform(0, 2 * np.pi, (feeds, 1)) + np.zeros(shape)
    column = {
        "popularity_log": rng.gamma(4.0, 1.6, shape),
        "age_hours": rng.exponential(30.0, shape),
        "watch_ratio": rng.beta(4, 3, shape),
        "completion_rate": rng.beta(3, 3, shape),
        "like_rate": rng.beta(2, 20, shape),
        "share_rate": rng.beta(1, 40, shape),
        "creator_quality": rng.beta(5, 3, shape),
        "duration_log": rng.normal(3.2, 0.6, shape),
        "freshness": rng.beta(2, 2, shape),
        "author_affinity": rng.beta(1, 4, shape),
        "topic_match": rng.beta(2, 3, shape),
        "is_following": (rng.random(shape) < 0.15).astype(float),
        "seen_share": rng.beta(1, 5, shape),
        "hour_sin": np.sin(hour),
        "hour_cos": np.cos(hour),
        "position": np.broadcast_to(np.arange(CANDIDATES) / (CANDIDATES - 1), shape),
    }
    taste = (
        -3.6
        + 3.2 * column["topic_match"] * column["completion_rate"]
        + 2.4 * np.sqrt(column["author_affinity"]) * (0.5 + column["is_following"])
        + 0.28 * column["popularity_log"] * np.exp(-column["age_hours"] / 36)
        + 2.0 * column["creator_quality"] * column["watch_ratio"]
        + 2.5 * np.tanh(8 * column["like_rate"])
        + 4.0 * np.sqrt(column["share_rate"]) * column["freshness"]
        - 3.0 * np.maximum(column["seen_share"] - 0.15, 0)
        # long videos are left early, most of all in the morning
        - 1.1 * np.maximum(column["duration_log"] - 3.2, 0) * (1.2 + column["hour_sin"])
        + 0.4 * column["hour_cos"] * (column["topic_match"] - 0.4)
        - 0.5 * column["position"]
    )
    watched = rng.random(shape) < 1 / (1 + np.exp(-taste))
    features = np.stack([column[name] for name in SCHEMA.names], axis=-1)
    return features.astype(np.float32), watched.astype(np.float32)


class Ranker:
    """The tower, with its gradient written out."""

    def __init__(self, mean: Array, scale: Array, rng: np.random.Generator) -> None:
        width = len(SCHEMA.names)

        def normal(*shape: int, fan: int) -> Array:
            return np.asarray(rng.normal(size=shape) * np.sqrt(2 / fan), np.float32)

        self.mean, self.scale = mean, scale
        self.weights: dict[str, Array] = {
            "slope": normal(width, TOKEN, fan=2),
            "offset": normal(width, TOKEN, fan=2),
            "inner_w": normal(TOKEN, INNER, fan=TOKEN),
            "inner_b": np.zeros(INNER, np.float32),
            "outer_w": normal(INNER, TOKEN, fan=INNER),
            "outer_b": np.zeros(TOKEN, np.float32),
            "pool": normal(width, TOKEN, fan=2 * width),
            "head_w": normal(TOKEN, HEAD, fan=TOKEN),
            "head_b": np.zeros(HEAD, np.float32),
            "score_w": normal(HEAD, 1, fan=HEAD),
            "score_b": np.zeros(1, np.float32),
        }

    def gradient(self, x: Array, y: Array) -> dict[str, Array]:
        """Slope of the mean cross entropy. x: (n, 16) raw features; y: (n,) zeros and ones."""
        w = self.weights
        rows, width = x.shape
        z = ((x - self.mean) / self.scale)[:, :, None]
        token = np.maximum(z * w["slope"] + w["offset"], 0)
        flat = token.reshape(-1, TOKEN)
        inner = np.maximum(flat @ w["inner_w"] + w["inner_b"], 0)
        outer = np.maximum(inner @ w["outer_w"] + w["outer_b"], 0)
        cube = outer.reshape(rows, width, TOKEN)
        pooled = (cube * w["pool"]).sum(axis=1)
        head = np.maximum(pooled @ w["head_w"] + w["head_b"], 0)
        logit = (head @ w["score_w"] + w["score_b"])[:, 0]
        d_logit = ((1 / (1 + np.exp(-logit)) - y) / rows)[:, None].astype(np.float32)
        d_head = (d_logit @ w["score_w"].T) * (head > 0)
        d_pooled = (d_head @ w["head_w"].T)[:, None, :]
        d_outer = ((d_pooled * w["pool"]).reshape(-1, TOKEN)) * (outer > 0)
        d_inner = (d_outer @ w["outer_w"].T) * (inner > 0)
        d_token = (d_inner @ w["inner_w"].T).reshape(rows, width, TOKEN) * (token > 0)
        return {
            "slope": (d_token * z).sum(axis=0),
            "offset": d_token.sum(axis=0),
            "inner_w": flat.T @ d_inner,
            "inner_b": d_inner.sum(axis=0),
            "outer_w": inner.T @ d_outer,
            "outer_b": d_outer.sum(axis=0),
            "pool": (d_pooled * cube).sum(axis=0),
            "head_w": pooled.T @ d_head,
            "head_b": d_head.sum(axis=0),
            "score_w": head.T @ d_logit,
            "score_b": d_logit.sum(axis=0),
        }

    def train(self, x: Array, y: Array, epochs: int, rng: np.random.Generator) -> None:
        """Adam (Kingma and Ba 2015, algorithm 1) with a step size that falls to zero along a cosine."""
        first = {name: np.zeros_like(value) for name, value in self.weights.items()}
        second = {name: np.zeros_like(value) for name, value in self.weights.items()}
        steps = epochs * (len(x) // BATCH)
        step = 0
        for _ in range(epochs):
            order = rng.permutation(len(x))
            for begin in range(0, len(x) - BATCH + 1, BATCH):
                step += 1
                chosen = order[begin : begin + BATCH]
                rate = LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
                for name, slope in self.gradient(x[chosen], y[chosen]).items():
                    first[name] += 0.1 * (slope - first[name])
                    second[name] += 0.001 * (slope * slope - second[name])
                    root = np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8
                    self.weights[name] -= (rate * (first[name] / (1 - 0.9**step)) / root).astype(np.float32)

    def export(self, path: Path) -> None:
        """Writes the float32 graph: input `features` (n, 16), raw; output `scores` (n, 1), chance of a full
        watch.
        """
        w, width = self.weights, len(SCHEMA.names)
        # The normalisation of the inputs is folded into the embedding, so that serving sends raw features.
        slope = w["slope"] / self.scale[:, None]
        constants = {
            **w,
            "slope": slope[None],
            "offset": (w["offset"] - self.mean[:, None] * slope)[None],
            "pool": w["pool"][None],
        }
        shapes = {
            "as_column": [0, width, 1],
            "as_rows": [-1, TOKEN],
            "as_cube": [-1, width, TOKEN],
            "axis": [1],
        }
        initializers = [
            numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()
        ]
        initializers += [
            numpy_helper.from_array(np.array(value, np.int64), name) for name, value in shapes.items()
        ]
        node = helper.make_node
        nodes = [
            node("Reshape", ["features", "as_column"], ["column"]),
            node("Mul", ["column", "slope"], ["scaled"]),
            node("Add", ["scaled", "offset"], ["shifted"]),
            node("Relu", ["shifted"], ["token"]),
            node("Reshape", ["token", "as_rows"], ["tokens"]),
            node("Gemm", ["tokens", "inner_w", "inner_b"], ["inner_sum"], name="inner"),
            node("Relu", ["inner_sum"], ["inner_out"]),
            node("Gemm", ["inner_out", "outer_w", "outer_b"], ["outer_sum"], name="outer"),
            node("Relu", ["outer_sum"], ["outer_out"]),
            node("Reshape", ["outer_out", "as_cube"], ["cube"]),
            node("Mul", ["cube", "pool"], ["weighted"]),
            node("ReduceSum", ["weighted", "axis"], ["pooled"], keepdims=0),
            node("Gemm", ["pooled", "head_w", "head_b"], ["head_sum"]),
            node("Relu", ["head_sum"], ["head_out"]),
            node("Gemm", ["head_out", "score_w", "score_b"], ["logit"]),
            node("Sigmoid", ["logit"], ["scores"]),
        ]
        graph = helper.make_graph(
            nodes,
            "home_feed_ranker",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["candidates", width])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["candidates", 1])],
            initializers,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="fairlead",
        )
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Training rows in batches, from which the ranges of the activations are read."""

    def __init__(self, x: Array) -> None:
        self._batches = iter([{"features": x[i : i + 256]} for i in range(0, min(len(x), 4096), 256)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def quantize(source: Path, target: Path, calibration: Array) -> None:
    """Writes the int8 form: the two large products, which hold almost all the work, in 8 bits."""
    logging.disable(logging.WARNING)
    # 7-bit weights: with all 8, processors without VNNI saturate a 16-bit sum and answer differently.
    quantize_static(
        source,
        target,
        _Calibration(calibration),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,
        op_types_to_quantize=["Gemm", "Relu"],
        nodes_to_quantize=["inner", "outer"],
    )
    model = onnx.load(target)
    target.write_bytes(model.SerializeToString(deterministic=True))


def auc(scores: Array, labels: Array) -> float:
    """Chance that a watched video is scored above an unwatched one (Mann and Whitney 1947), ties counted
    half.
    """
    _, where, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[where]
    good = labels > 0
    positives, negatives = int(good.sum()), int((~good).sum())
    return float((ranks[good].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def ndcg(scores: Array, labels: Array, top: int = 10) -> float:
    """Mean over feeds of DCG@10 / ideal DCG@10 (Järvelin and Kekäläinen 2002). Shapes (feeds, 24)."""
    discount = 1 / np.log2(np.arange(2, top + 2))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    gained = (np.take_along_axis(labels, best, axis=1) * discount).sum(axis=1)
    ideal = (-np.sort(-labels, axis=1)[:, :top] * discount).sum(axis=1)
    return float((gained[ideal > 0] / ideal[ideal > 0]).mean())


def rank_correlation(a: Array, b: Array) -> float:
    """Mean over feeds of Spearman's rank correlation between two scorings. Shapes (feeds, 24)."""
    ranks_a, ranks_b = (np.argsort(np.argsort(s, axis=1), axis=1).astype(float) for s in (a, b))
    n = a.shape[1]
    return float((1 - 6 * ((ranks_a - ranks_b) ** 2).sum(axis=1) / (n * (n * n - 1))).mean())


def run_session(path: Path, x: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path.read_bytes(), options, ["CPUExecutionProvider"])
    parts = [session.run(None, {"features": x[i : i + CANDIDATES]})[0] for i in range(0, len(x), CANDIDATES)]
    return np.concatenate(parts)[:, 0]


def build(directory: Path, *, seed: int, feeds: int, epochs: int) -> Manifest:
    """Trains and writes `ranker.fp32.onnx`, `ranker.int8.onnx` and `manifest.json` into `directory`."""
    train_rng, test_rng, init_rng = (np.random.default_rng([seed, part]) for part in range(3))
    x, y = make_feeds(feeds, train_rng)
    x_test, y_test = make_feeds(TEST_FEEDS, test_rng)
    flat = x.reshape(-1, len(SCHEMA.names))
    ranker = Ranker(flat.mean(axis=0), flat.std(axis=0), init_rng)
    ranker.train(flat, y.reshape(-1), epochs, train_rng)

    paths = {precision: directory / f"ranker.{precision}.onnx" for precision in ("fp32", "int8")}
    ranker.export(paths["fp32"])
    quantize(paths["fp32"], paths["int8"], flat)

    test_rows = x_test.reshape(-1, len(SCHEMA.names))
    scores = {
        precision: run_session(path, test_rows).reshape(y_test.shape) for precision, path in paths.items()
    }
    heuristic = HeuristicScorer(SCHEMA, HEURISTIC_WEIGHTS)
    scores["heuristic"] = np.array(heuristic.score(test_rows.tolist())).reshape(y_test.shape)
    metrics = {f"auc_{name}": auc(s.reshape(-1), y_test.reshape(-1)) for name, s in scores.items()}
    metrics |= {f"ndcg_at_10_{name}": ndcg(s, y_test) for name, s in scores.items()}
    metrics["rank_correlation_int8_fp32"] = rank_correlation(scores["int8"], scores["fp32"])
    metrics["largest_difference_int8_fp32"] = float(np.abs(scores["int8"] - scores["fp32"]).max())
    metrics["watched_share"] = float(y_test.mean())

    golden = test_rows[:GOLDEN_ROWS]
    manifest = Manifest(
        format=1,
        name="home-feed-ranker",
        version="1",
        created_from=CreatedFrom(
            script="scripts/train_home_feed_ranker.py",
            seed=seed,
            libraries={
                "numpy": np.__version__,
                "onnx": onnx.__version__,
                "onnxruntime": onnxruntime.__version__,
            },
        ),
        opset=OPSET,
        features=list(SCHEMA.names),
        features_version=SCHEMA.version,
        features_hash=SCHEMA.hash,
        files={precision: _entry(path) for precision, path in paths.items()},
        golden=GoldenBatch(
            rows=golden.astype(float).tolist(),
            scores={p: run_session(path, golden).astype(float).tolist() for p, path in paths.items()},
            tolerance=TOLERANCE,
        ),
        metrics={name: round(value, 6) for name, value in sorted(metrics.items())},
    )
    text = json.dumps(msgspec.to_builtins(manifest), indent=1, sort_keys=True)
    (directory / MANIFEST_NAME).write_text(text + "\n")
    for precision in paths:
        OnnxScorer.load(directory, precision, schema=SCHEMA)  # type: ignore[arg-type]
    return manifest


def _entry(path: Path) -> ModelFile:
    raw = path.read_bytes()
    return ModelFile(file=path.name, sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw))


def differences(directory: Path, fresh: Path) -> list[str]:
    """Names of the files that differ between the two model directories."""
    names = [MANIFEST_NAME, "ranker.fp32.onnx", "ranker.int8.onnx"]
    return [
        name
        for name in names
        if not (directory / name).is_file() or (directory / name).read_bytes() != (fresh / name).read_bytes()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the home feed's ranker.")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--feeds", type=int, default=TRAIN_FEEDS, help="feeds to train on")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=DIRECTORY, help="model directory")
    parser.add_argument(
        "--check", action="store_true", help="train elsewhere, compare with --out, change nothing"
    )
    given = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) if given.check else given.out
        directory.mkdir(parents=True, exist_ok=True)
        try:
            manifest = build(directory, seed=given.seed, feeds=given.feeds, epochs=given.epochs)
        except FairleadError as error:
            print(error, file=sys.stderr)
            return 1
        for name, value in manifest.metrics.items():
            print(f"{name:32} {value:.6f}")
        for precision, entry in manifest.files.items():
            print(f"{precision:32} {entry.bytes} bytes  sha256 {entry.sha256}")
        print(f"{'training':32} {time.monotonic() - start:.1f} s", file=sys.stderr)
        changed = differences(given.out, directory) if given.check else []
    if changed:
        print(
            f"differ from {given.out}: {', '.join(changed)}: train without --check, or look why",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
