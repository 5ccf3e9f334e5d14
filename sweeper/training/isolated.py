"""Ultralytics, imported so that it touches nothing of the user's: import this module before any of its parts.

It never sees the user's settings, installs nothing, downloads nothing, reports nothing, starts no integration (its
MLflow callback would log every trial a second time), and prints warnings only.
"""

import logging
import os
import tempfile

import numpy as np

os.environ |= {"YOLO_AUTOINSTALL": "False", "YOLO_OFFLINE": "True", "YOLO_VERBOSE": "False"}
_before = {name: os.environ.pop(name, None) for name in ("YOLO_CONFIG_DIR", "WORLD_SIZE")}
_print_options = np.get_printoptions()

# WORLD_SIZE is set by cluster launchers; Ultralytics would take this process for a rank of a distributed training
with tempfile.TemporaryDirectory(prefix="sweeper-ultralytics-") as _folder:
    os.environ["YOLO_CONFIG_DIR"] = _folder
    import ultralytics.utils

    del os.environ["YOLO_CONFIG_DIR"]

os.environ |= {name: value for name, value in _before.items() if value is not None}
np.set_printoptions(**_print_options)  # Ultralytics sets its own, for everybody
ultralytics.utils.LOGGER.setLevel(logging.WARNING)
_integrations = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")
dict.update(ultralytics.utils.SETTINGS, {"sync": False, **dict.fromkeys(_integrations, False)})  # in memory only
