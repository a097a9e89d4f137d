"""Settings of the tracking of runs in MLflow."""

from pydantic import field_validator

from pipeline.settings import Settings
from pipeline.tracking import addresses

LONGEST_NAME = 200
"""Greatest number of characters of an experiment's name, of which MLflow's registry accepts 256."""


class TrackingSettings(Settings):
    """Where runs are recorded. The variable `MLFLOW_TRACKING_URI` takes precedence over `uri`."""

    uri: str = "sqlite:///mlflow.db"
    """Address of the tracking server or database."""
    experiment: str = "distillery"
    """Name of the experiment. The registered model has the same name, in which `-` takes the place of
    characters that MLflow's registry or its addresses do not allow: `/ : ; ? "` and backslashes."""

    @field_validator("uri")
    @classmethod
    def _is_an_address(cls, uri: str) -> str:
        if (problem := addresses.problem(uri)) is not None:
            raise ValueError(problem)
        return uri

    @field_validator("experiment")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if len(name) > LONGEST_NAME:
            raise ValueError(f"it has {len(name)} characters; allowed: up to {LONGEST_NAME}")
        if name != name.strip() or not name.isprintable() or not any(map(str.isalnum, name)):
            raise ValueError(
                "allowed: one line with at least one letter or digit, and without blanks at the ends"
            )
        return name
