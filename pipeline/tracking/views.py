"""The saved view of MLflow's pages that answers which variant to ship.

A saved view is a tag of the experiment: JSON with a name, the time of its making, and the state of the page,
as MLflow 3 writes it itself (``savedViewEnvelope.ts`` and ``ExperimentPageUIState.tsx`` in its sources).
"""

import itertools
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from pipeline.tracking import client
from pipeline.tracking.client import MlflowClient, Run
from pipeline.tracking.records import DATASET, LATEST, OWN, VARIANT, ExportedFile, PipelineState, slug

TAG = "mlflow.sharedViewState."
"""Beginning of the key of the tag."""

PAGES = "workflowType=machine_learning"
"""Query that keeps MLflow from showing its pages for language models."""

TITLE = "Which one do I ship"

PIXELS_PER_LETTER, PADDING = (8.5, 6.6), 28
"""Width of a column, by its heading and by its longest text, in CSS pixels."""

COLOUR = "mlflow.runColor"
"""Tag of a run: its colour in the charts, which MLflow would draw by lot."""
CHAMPIONS_COLOUR = "#009E73"
COLOURS = ("#56B4E9", "#E69F00", "#CC79A7", "#0072B2", "#D55E00", "#999999", "#332288", "#AA4499")
"""Colours that can be told apart by people who are colour-blind (Okabe and Ito 2008), repeated if need be."""


def save(
    mlflow: MlflowClient,
    experiment_id: str,
    state: PipelineState,
    variants: Sequence[ExportedFile],
    runs: Mapping[str, Run],
) -> None:
    """Write the view of the newest state of a data set into the experiment, unless it is there."""
    tags = mlflow.get_experiment(experiment_id).tags
    key = f"{TAG}{slug(state.data_id)}"
    page = json.dumps(_page(state, variants, runs))
    if key not in tags or json.loads(tags[key])["state"] != page:
        view = {"name": f"{TITLE}: {state.dataset}", "createdAt": int(1000 * time.time()), "state": page}
        mlflow.set_experiment_tag(experiment_id, key, json.dumps(view))


def colours(names: Sequence[str], champion: str | None) -> dict[str, str]:
    """A colour for each variant."""
    rest = itertools.cycle(COLOURS)
    return {name: CHAMPIONS_COLOUR if name == champion else next(rest) for name in names}


def path(parent: Run, *, charts: bool = False) -> str:
    """The address of the view that the state of a parent run belongs to, without the server."""
    return address(parent.info.experiment_id, parent.data.tags.get(DATASET), charts=charts)


def address(experiment_id: str, data_id: str | None, *, charts: bool = False) -> str:
    """The address of the view of a data set, or without one of all runs, without the server."""
    query = {} if data_id is None else {"viewStateShareKey": slug(data_id)}
    if charts:
        query["compareRunsMode"] = "CHART"
    return f"#/experiments/{experiment_id}/runs?{PAGES}&{urlencode(query)}".rstrip("&")


def _page(state: PipelineState, variants: Sequence[ExportedFile], runs: Mapping[str, Run]) -> dict[str, Any]:
    widths = {
        f"tags.`{heading}`": PADDING
        + round(
            max(
                PIXELS_PER_LETTER[0] * len(heading),
                *(PIXELS_PER_LETTER[1] * len(exported.summary[heading]) for exported in variants),
            )
        )
        for heading in variants[0].summary
    }
    columns = [*widths, *(f"params.`{key}`" for key in differing(variants))]
    champion = runs.get(state.champion or "")
    section = {"uuid": "tradeoff", "name": TITLE, "display": True, "isReordered": True}
    charts = [
        {
            "uuid": f"scatter-{cost}",
            "type": "SCATTER",
            "metricSectionId": section["uuid"],
            "deleted": False,
            "isGenerated": False,
            "runsCountToCompare": 100,
            "xaxis": {"key": cost, "type": "METRIC"},
            "yaxis": {"key": state.score, "type": "METRIC"},
        }
        for cost in state.costs
    ]
    return {
        "searchFilter": client.equals(f"tags.`{LATEST}`", state.data_id),
        "orderByKey": f"metrics.`{state.costs[0]}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": widths,
        "runsPinned": [champion.info.run_id] if champion else [],
        "runsExpanded": {},
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "compareRunCharts": charts,
        "compareRunSections": [section],
    }


def differing(variants: Sequence[ExportedFile]) -> list[str]:
    """The parameters that have more than one value among the variants, those of their making first."""
    values: dict[str, set[str]] = {}
    for exported in variants:
        for key, value in client.flatten(exported.run.params).items():
            values.setdefault(key, set()).add(value)
    names = [key for key, found in values.items() if len(found) > 1 and key != f"{OWN}.{VARIANT}"]
    return sorted(names, key=lambda key: (not re.match(rf"{OWN}\.(parent|op|method)$", key), key))
