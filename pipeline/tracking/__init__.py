"""Experiment tracking with MLflow: runs, live training curves, and the model registry."""
