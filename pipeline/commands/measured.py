"""The command `measured`."""

import json
from argparse import Namespace
from pathlib import Path

from pipeline import paths


def run(arguments: Namespace) -> None:
    """Print the files with their entries, and the reasons of the choices; remove them if asked to."""
    files = [paths.kernels(), paths.precision_trials(), *sorted(paths.choices().glob("*.json"))]
    for file in filter(Path.is_file, files):
        print(f"{file}: {_summary(file)}")
        if arguments.forget:
            file.unlink()
    if arguments.forget:
        print("removed; a stage that is finished runs again with `dvc repro --single-item --force STAGE`")


def _summary(file: Path) -> str:
    """A choice's answer and reason, or the number of measurements of a table."""
    try:
        content = json.loads(file.read_bytes())
        if isinstance(content, list):
            kept = [trial for trial in content if trial["kept"]][-1]
            steps = ", ".join(kept["steps"]) or "none"
            return f"steps of quantisation: {steps}; the best of {len(content)} that were tried"
        if "reason" not in content:
            values = [value if isinstance(value, dict) else {0: value} for value in content.values()]
            return f"{sum(map(len, values))} measurements"
        if "layers" in content:
            return f"float layers: {', '.join(content['layers']) or 'none'}; {content['reason']}"
        plan = content["plans"][0]
        return f"criterion {plan['criterion']}, shape {plan['shape']}; {content['reason']}"
    except (ValueError, TypeError, AttributeError, LookupError):
        return "damaged"
