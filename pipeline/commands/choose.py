"""The command `choose`."""

import json
import sys
from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline import paths
from pipeline.process import one_line_errors

if TYPE_CHECKING:
    from pipeline.selection.budget import Choice


def run(arguments: Namespace) -> None:
    """Print the variant that fits the budget best; options take precedence over `budget` in params.yaml."""
    from pipeline import parameters
    from pipeline.selection import budget, table
    from pipeline.selection.settings import BudgetSettings

    options = {name: getattr(arguments, name) for name in BudgetSettings.model_fields}
    changes = {"budget": {name: limit for name, limit in options.items() if limit is not None}}
    details: dict[str, Any] = {}
    with one_line_errors():
        p = parameters.load(changes=changes)
        limits = p.budget.model_dump()
        if arguments.experiments:
            choice, details = _choose_among_experiments(limits)
        else:
            choice = budget.choose(
                table.read(paths.VARIANTS), **limits, gate_max_drop=p.gate.distill.max_drop
            )
    if arguments.json:
        print(json.dumps({**asdict(choice), "budget": limits, **details}, indent=2))
    elif choice.variant:
        # Only the name goes to standard output, for `$(python -m pipeline choose)`.
        print(choice.reason, file=sys.stderr)
        print(choice.variant)
    else:
        print(f"error: {choice.reason}", file=sys.stderr)
    if not choice.variant:
        raise SystemExit(1)


def _choose_among_experiments(limits: dict[str, Any]) -> "tuple[Choice, dict[str, Any]]":
    """Choose among all experiments; print and return the settings in which the chosen one differs."""
    from pipeline.selection import budget, experiments

    finished, unfinished = experiments.read()
    results = experiments.collect(finished)
    choice = budget.choose(results, **limits)
    result = next(result for result in results if result.variant == choice.closest)
    settings = experiments.differences(finished)[result.experiment]
    options = [f"-S {key}={json.dumps(value)}".replace('"', "") for key, value in settings.items()]
    print(
        f"{len(results)} variants of {len(finished)} experiments, scored on the validation split "
        f"({unfinished} experiments are not finished)\n"
        f"{result.variant}: {result.test_score:.2%} on the test split; {' '.join(options)}",
        file=sys.stderr,
    )
    return choice, {"experiment": result.experiment, "settings": settings, "test": result.test_score}
