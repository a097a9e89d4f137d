"""Settings of the tracking of runs in MLflow."""

from pipeline.settings import Settings


class TrackingSettings(Settings):
    """Where runs are recorded. The variable `MLFLOW_TRACKING_URI` takes precedence over `uri`."""

    uri: str = "sqlite:///mlflow.db"
    """Address of the tracking server or database."""
    experiment: str = "distillery"
    """Name of the experiment."""
