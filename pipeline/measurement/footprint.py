"""Load time and peak memory of one ONNX file, in a process that does nothing else.

This module runs as a script. It imports only ONNX Runtime and NumPy, as an application would.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

STATUS = Path("/proc/self/status")


def main(file: str) -> None:
    """Open the file, run it once on a black image, and print the time and memory as JSON."""
    _reset_peak()
    before = _memory("VmRSS")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    start = time.perf_counter()
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    loaded = time.perf_counter()
    [port] = session.get_inputs()
    session.run(None, {port.name: np.zeros((1, *port.shape[1:]), np.uint8)})
    peak = _memory("VmHWM")
    print(
        json.dumps(
            {
                "load_ms": 1000 * (loaded - start),
                "first_call_ms": 1000 * (time.perf_counter() - loaded),
                "memory_peak_bytes": peak,
                "memory_rise_bytes": peak - before,
            }
        )
    )


def _reset_peak() -> None:
    """Reset the peak: the imports may have needed more memory for a moment than they keep."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _memory(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main(sys.argv[1])
