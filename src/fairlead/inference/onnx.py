"""Scores with ONNX Runtime on the CPU, one thread, after the model has proved to be the promised one.

`OnnxScorer.load` checks hash, feature schema and golden batch; a scorer that exists is a scorer that answered
rightly once. Threads do not spin between calls: a spinning pool burns a core to save microseconds that the
event loop needs more. A session does not survive `fork`: load after the fork, in the worker.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fairlead.errors import InvalidInput, MissingExtra, ModelRejected
from fairlead.inference.feature_schema import FeatureSchema, Rows
from fairlead.inference.registry import Manifest, load_manifest, read_model, verify_golden

try:
    import numpy as np
    import onnxruntime
except ImportError as missing:
    raise MissingExtra(missing.name or "onnxruntime", "inference") from missing

__all__ = ["OnnxScorer"]

onnxruntime.disable_telemetry_events()


class OnnxScorer:
    """A verified model. `score` is thread-safe and releases the interpreter lock while it computes."""

    def __init__(self, session: Any, manifest: Manifest, precision: str) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self._outputs = [session.get_outputs()[0].name]
        self.manifest = manifest
        self.schema = manifest.schema
        self.version = f"{manifest.name}-{manifest.version}-{precision}"

    @classmethod
    def load(
        cls,
        directory: str | Path,
        precision: Literal["int8", "fp32"] = "int8",
        *,
        threads: int = 1,
        schema: FeatureSchema | None = None,
    ) -> OnnxScorer:
        """The scorer of the model in `directory`. Blocks for some tens of milliseconds: call it at start.

        threads: threads of one call, 1–64. 1: requests, not matrices, are what a server runs in parallel.
        schema: the columns that the serving code builds; None trusts the manifest's.
        Raises BrokenDocument or ModelRejected when manifest, hash, schema or golden batch do not fit.
        """
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 64:
            raise InvalidInput(f"threads: {threads!r} is outside 1 to 64")
        manifest = load_manifest(directory)
        if schema is not None and schema.hash != manifest.features_hash:
            raise ModelRejected(
                f"{Path(directory)}: feature schema hash: expected {schema.hash} from the serving code, "
                f"found {manifest.features_hash} in the manifest: train on the schema that serving builds"
            )
        raw = read_model(directory, manifest, precision)
        where = str(Path(directory) / manifest.files[precision].file)
        try:
            scorer = cls(
                onnxruntime.InferenceSession(raw, _options(threads), ["CPUExecutionProvider"]),
                manifest,
                precision,
            )
            scorer.schema.validate(manifest.golden.rows)
            found = scorer.score(manifest.golden.rows)
        except Exception as error:  # ONNX Runtime raises many types; each means that this file cannot serve
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelRejected(f"{where}: does not run: {reason:.200}: train and export again") from error
        verify_golden(manifest, precision, found, where)
        return scorer

    def score(self, rows: Rows) -> tuple[float, ...]:
        """One score per row, shape (n,), in float32 or int8. Blocks for the length of one run."""
        features = np.asarray(rows, dtype=np.float32)
        (scores,) = self._session.run(self._outputs, {self._input: features})
        return tuple(scores.reshape(-1).tolist())


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options
