"""Sweeps learning-rate schedules for detection models: Optuna proposes, YOLO trains the exact trace, MLflow shows."""

__version__ = "0.1.0"
