"""Sessions of ONNX Runtime; the only place where their options are set. It imports ONNX Runtime alone."""

from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

PLAIN = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
"""Runs the graph as it is written: floating-point layers between quantise and dequantise nodes."""
FUSED = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
"""Runs the graph as it ships, with integer kernels."""

PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}
"""Short name to ONNX Runtime's execution providers; operators that the first does not have run on the
next."""

ERRORS_ONLY = 3
"""Severity from which ONNX Runtime logs. Its warnings concern what is intended here, such as a graph that was
optimised for this machine alone."""


def open_session(
    file: Path | bytes,
    *,
    threads: int = 1,
    level: ort.GraphOptimizationLevel = FUSED,
    provider: str = "cpu",
    cores: Sequence[int] = (),
    optimized: Path | None = None,
    profile: Path | None = None,
) -> ort.InferenceSession:
    """Open an ONNX file, whose operators run one after another.

    Args:
        file: path or content of the file.
        threads: number of threads within an operator; 0 takes one per physical core.
        level: how far ONNX Runtime optimises the graph.
        provider: a key of ``PROVIDERS``.
        cores: cores to pin the threads to, one each; the first is the calling thread's, which pins itself.
        optimized: path to which the optimised graph is written.
        profile: beginning of the path to which ``end_profiling`` writes the times of the nodes.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = ERRORS_ONLY
    # Threads of an idle session must not take cores from the next one.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if len(cores) > 1:
        # ONNX Runtime counts processors from 1 and expects a group for each thread except the caller's.
        groups = ";".join(str(core + 1) for core in cores[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", groups)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(file, options, providers=PROVIDERS[provider])
