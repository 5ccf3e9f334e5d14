"""Weights of a run: fetched, and registered in MLflow's model registry under an alias, without pickled code.

What is registered is an *external* model: a name, where its weights are (an artifact of the trial's run, a plain
``state_dict``), and the run with its curves. Nothing that MLflow would unpickle is stored.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from sweeper.tracking.connection import Gone
from sweeper.tracking.server import Server

WEIGHTS = "weights/ema.pt"


def fetch(server: Server, run_id: str, name: str = WEIGHTS) -> bytes | None:
    """Artifact ``name`` of a run; None if it has none of that name. TrackingError if the server is away."""
    if not server.has_file(run_id, name):
        return None
    with tempfile.TemporaryDirectory() as folder, server.asking():
        return Path(server.client().download_artifacts(run_id, name, folder)).read_bytes()


def register(server: Server, run_id: str, model: str, alias: str, tags: Mapping[str, str]) -> int:
    """Make the run's weights the version of ``model`` that ``alias`` names; gives the version's number.

    A version of this run that is there already is used again. TrackingError if the server is away or refuses.
    """
    client = server.client()
    import mlflow

    words = {**tags, "weights": f"runs:/{run_id}/{WEIGHTS}", "format": "torch state_dict, weights_only"}
    with server.asking(), server.turn():
        try:
            client.get_registered_model(model)
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            client.create_registered_model(model, description="Detector weights found by sweeping learning rates.")
        found = [v for v in client.search_model_versions(f"name = '{model}'") if v.run_id == run_id]
        if found:
            number = max(int(version.version) for version in found)
        else:
            said = f"Weights: artifact {WEIGHTS} of run {run_id}; a state_dict, torch.load(..., weights_only=True)."
            before = mlflow.get_tracking_uri()
            mlflow.set_tracking_uri(server.uri)  # external models are made and looked up without a client
            try:
                made = mlflow.create_external_model(
                    model, run_id, words, model_type="detector", experiment_id=server.experiment_id()
                )
                source = f"models:/{made.model_id}"
                version = client.create_model_version(
                    model, source, run_id, tags=words, description=said, model_id=made.model_id
                )
            finally:
                mlflow.set_tracking_uri(before)
            number = int(version.version)
        client.set_registered_model_alias(model, alias, str(number))
    return number


def aliased(server: Server, model: str, alias: str) -> str | None:
    """The id of the run whose weights ``alias`` names; None if there is no such model or alias."""
    try:
        with server.asking():
            number = server.client().get_registered_model(model).aliases.get(alias)
            return str(server.client().get_model_version(model, number).run_id) if number else None
    except Gone:
        return None
