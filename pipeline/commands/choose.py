"""The command `choose`."""

import json
import sys
from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline import paths
from pipeline.escaping import for_terminal
from pipeline.running.process import one_line_errors

if TYPE_CHECKING:
    from pipeline.parameters import Parameters
    from pipeline.selection.budget import Choice
    from pipeline.selection.settings import BudgetSettings


def run(arguments: Namespace) -> None:
    """Print the variant that fits the budget best; options take precedence over `budget` in params.yaml."""
    from pipeline import parameters

    details: dict[str, Any] = {}
    with one_line_errors():
        options = _options(arguments)
        p = parameters.load(changes={"budget": options.model_dump(exclude_unset=True)})
        limits = p.budget.model_dump()
        if arguments.experiments:
            choice, details = _choose_among_experiments(limits)
        else:
            choice = of_workspace(p)
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


def of_workspace(p: "Parameters") -> "Choice":
    """The choice among the variants of the workspace."""
    from pipeline.selection import budget, table

    return budget.choose(
        table.read(paths.VARIANTS),
        **p.budget.model_dump(),
        first_step=p.first_step,
        noisy=table.is_noisy(paths.BENCHMARK),
    )


def _options(arguments: Namespace) -> "BudgetSettings":
    """The options that were given, checked under their own names."""
    from pydantic import ValidationError

    from pipeline.parameters import ParameterError, messages
    from pipeline.selection.settings import BudgetSettings

    values = {name: getattr(arguments, name) for name in BudgetSettings.model_fields}
    try:
        return BudgetSettings(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        problems = error.errors()
        for problem in problems:  # named by the option that a person has typed
            problem["loc"] = ("--" + str(problem["loc"][0]).replace("_", "-"),)
        raise ParameterError(*(messages.line(of, "", BudgetSettings) for of in problems)) from None


def _choose_among_experiments(limits: dict[str, Any]) -> "tuple[Choice, dict[str, Any]]":
    """Choose among the experiments on the data of the workspace; print the choice of other data beside it.

    Returns:
        The choice, and the settings in which the experiment differs from the others on the same data.
    """
    from pipeline.selection import experiments

    finished, unfinished = experiments.read()
    first, *others = experiments.group(finished) or [[]]
    choice, result = experiments.choose(first, **limits)
    settings = experiments.differences(first)[result.experiment]
    lines = [
        f"{sum(len(one.rows) for one in first)} variants of {len(first)} experiments, scored on the "
        f"validation split ({unfinished} experiments are not finished)",
        "; ".join(
            [
                f"{result.variant}: {result.test_score:.2%} on {result.test_images:,} test images",
                *filter(None, [experiments.options(settings)]),
            ]
        ),
    ]
    for other in others:
        place = other[0].parameters["data"]["path"]
        another, _ = experiments.choose(other, **limits)
        lines.append(
            f"{len(other)} experiments on other images (data.path={place}), whose scores are not comparable: "
            f"{another.reason}"
        )
    print("\n".join(map(for_terminal, lines)), file=sys.stderr)
    return choice, {"experiment": result.experiment, "settings": settings, "test": result.test_score}
