"""jobs/kubernetes.yaml is what Kubernetes' API takes, as far as its schema and its documented rules tell."""

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate as schema
import pytest
import yaml

JOB = Path(__file__).resolve().parents[1] / "jobs" / "kubernetes.yaml"
VERSIONS = ("1.29.0", "1.33.0")


@pytest.fixture
def job() -> dict[str, Any]:
    return dict(yaml.safe_load(JOB.read_text()))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_job_follows_the_schema(job: dict[str, Any], version: str) -> None:
    schema.validate(job, version, strict=True)
    wrong = copy.deepcopy(job)
    wrong["spec"]["backoffLimitPerIndexes"] = wrong["spec"].pop("backoffLimitPerIndex")
    with pytest.raises(schema.ValidationError):
        schema.validate(wrong, version, strict=True)


def test_a_worker_has_its_own_attempts_and_time_for_its_epoch(job: dict[str, Any]) -> None:
    """What the schema does not say: which of these go only together."""
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # backoffLimitPerIndex and podFailurePolicy ask for it
    assert pod["terminationGracePeriodSeconds"] >= 300
    (worker,) = pod["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    named = {
        rule["onExitCodes"]["containerName"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    }
    assert named == {worker["name"]}
    mounted = {mount["name"] for mount in worker["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
