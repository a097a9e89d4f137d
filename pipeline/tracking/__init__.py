"""MLflow: runs, live training curves, the registry, and the served model."""
