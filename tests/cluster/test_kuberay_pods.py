"""Pods of the KubeRay manifests: their memory, their nodes, their secrets, and what they do when they are deleted."""

import re
import shlex
import time
from types import SimpleNamespace
from unittest.mock import create_autospec

import jsonschema
import pytest
import yaml

from tests.cluster.manifests import (
    CLUSTER,
    KUBERAY_SCHEMAS,
    PREREQUISITE_SCHEMAS,
    ROOT,
    cluster_spec,
    environment,
    load,
    pods,
    ray_container,
)


def gibibytes(quantity: str) -> float:
    assert quantity.endswith("Gi"), quantity
    return float(quantity.removesuffix("Gi"))


@pytest.mark.parametrize("name", KUBERAY_SCHEMAS)
def test_object_store_leaves_shared_memory_for_the_data_loaders(name):
    spec = cluster_spec(name)
    for group, share in ((spec["headGroupSpec"], 0.5), *((group, 0.25) for group in spec["workerGroupSpecs"])):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        [mount] = [mount for mount in ray_container(pod)["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
        shared = gibibytes(volumes[mount["name"]]["emptyDir"]["sizeLimit"])
        assert int(group["rayStartParams"]["object-store-memory"]) / 2**30 <= share * shared
        assert shared <= 0.5 * gibibytes(ray_container(pod)["resources"]["limits"]["memory"]), "it counts as memory"


@pytest.mark.parametrize("name", KUBERAY_SCHEMAS)
def test_pods_are_placed_on_their_nodes(name):
    spec = cluster_spec(name)
    [term] = spec["headGroupSpec"]["template"]["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    assert {(rule["key"], rule["operator"], *rule["values"]) for rule in term["matchExpressions"]} >= {
        ("cloud.google.com/gke-spot", "NotIn", "true"),
        ("eks.amazonaws.com/capacityType", "NotIn", "SPOT"),
        ("karpenter.sh/capacity-type", "NotIn", "spot"),
    }, "a NotIn rule holds on nodes without the label, and the head is not on a spot node"
    readme = (CLUSTER / "README.md").read_text()
    for group in spec["workerGroupSpecs"]:
        [(label, value)] = group["template"]["spec"]["nodeSelector"].items()
        assert f"{label}={value}" in readme


@pytest.mark.parametrize("name", KUBERAY_SCHEMAS)
def test_deleted_pods_have_time_and_tell_ray(name):
    import click
    from ray.scripts.scripts import drain_node

    head, *workers = pods(cluster_spec(name))
    grace = {pod["terminationGracePeriodSeconds"] for pod in (head, *workers)}
    assert grace == {120}
    for pod in workers:
        shell, flag, script = ray_container(pod)["lifecycle"]["preStop"]["exec"]["command"]
        assert (shell, flag) == ("/bin/sh", "-c")
        drain, _, wait = script.partition(" && ")
        program, command, *arguments = shlex.split(drain)
        assert (program, command) == ("ray", "drain-node")
        # Ray's own parser reads the options; without --node-id it drains the node on which it runs.
        options = drain_node.make_context("drain-node", arguments, resilient_parsing=False).params
        assert options["node_id"] is None
        assert options["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
        assert options["deadline_remaining_seconds"] == 100
        assert 100 < int(wait.removeprefix("sleep ")) < 120, "the node goes on until the deadline"
        with pytest.raises(click.BadParameter):
            drain_node.make_context("drain-node", ["--reason", "DELETED", "--reason-message", "x"])


@pytest.mark.parametrize("name", KUBERAY_SCHEMAS)
def test_a_deleted_head_stops_its_jobs_and_waits_for_them(name, monkeypatch):
    """The hook's program runs against a client with the pinned Ray's method names: two jobs, of which one ends late."""
    from ray import job_submission
    from ray.job_submission import JobStatus

    python, flag, program = ray_container(pods(cluster_spec(name))[0])["lifecycle"]["preStop"]["exec"]["command"]
    assert (python, flag) == ("python", "-c")
    client = create_autospec(job_submission.JobSubmissionClient, instance=True)
    client.list_jobs.return_value = [
        SimpleNamespace(submission_id="running", status=JobStatus.RUNNING),
        SimpleNamespace(submission_id="finished", status=JobStatus.SUCCEEDED),
        SimpleNamespace(submission_id=None, status=JobStatus.RUNNING),
    ]
    client.get_job_status.side_effect = [JobStatus.RUNNING, JobStatus.STOPPED]
    monkeypatch.setattr(job_submission, "JobSubmissionClient", lambda address: client)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    exec(compile(program, "preStop", "exec"), {})
    assert [call.args for call in client.stop_job.call_args_list] == [("running",)]
    assert client.get_job_status.call_count == 2


@pytest.mark.parametrize("name", KUBERAY_SCHEMAS)
def test_passwords_come_from_a_secret_and_not_with_the_job(name):
    head, *workers = pods(cluster_spec(name))
    found = environment(head)
    for variable, key in (("MLFLOW_TRACKING_USERNAME", "username"), ("MLFLOW_TRACKING_PASSWORD", "password")):
        assert found[variable] == {"secretKeyRef": {"name": "mlflow-client", "key": key}}
    assert not any("env" in ray_container(pod) for pod in workers), "only drivers talk to MLflow"
    for text in (load("kuberay/rayjob.yaml")["spec"]["runtimeEnvYAML"], str(load("runtime_env.yaml"))):
        assert not re.search("PASSWORD|TOKEN|SECRET", text)


def test_prerequisites_fit_the_manifests():
    documents = list(yaml.safe_load_all((CLUSTER / "kuberay/prerequisites.yaml").read_text()))
    for document in documents:
        jsonschema.validate(document, PREREQUISITE_SCHEMAS[document["kind"]])
    [account] = [document for document in documents if document["kind"] == "ServiceAccount"]
    budgets = [document["spec"] for document in documents if document["kind"] == "PodDisruptionBudget"]
    for name in KUBERAY_SCHEMAS:
        spec = cluster_spec(name)
        assert {pod["serviceAccountName"] for pod in pods(spec)} == {account["metadata"]["name"]}
        labels = spec["headGroupSpec"]["template"]["metadata"]["labels"]
        [budget] = [budget for budget in budgets if budget["selector"]["matchLabels"] == labels]
        assert budget["minAvailable"] == 1
    assert len(budgets) == len(KUBERAY_SCHEMAS), "a budget for each head"


def test_state_tracking_is_for_single_runs():
    variable = "RAY_TRAIN_ENABLE_STATE_TRACKING"
    assert environment(pods(cluster_spec("rayjob.yaml"))[0])[variable] == "1"
    assert variable not in environment(pods(cluster_spec("raycluster.yaml"))[0]), "380 MB for every trial of a sweep"
    assert variable not in load("runtime_env.yaml")["env_vars"]


def test_standing_clusters_say_that_nodes_are_added_on_demand():
    """RUNYARD_AUTOSCALING is set for drivers where the head has no CPUs, as long as the platform reads it."""
    variable = "RUNYARD_AUTOSCALING"
    read = any(variable in file.read_text() for file in (ROOT / "platform").rglob("*.py"))
    head = environment(pods(cluster_spec("raycluster.yaml"))[0])
    assert head.get(variable) == ("1" if read else None)
    assert (f"{variable}=1" in load("ray-aws.yaml")["head_start_ray_commands"][-1]) == read


def test_stopped_jobs_have_time_for_a_checkpoint():
    from runyard.training.stopping import GRACE_S

    wait = int(load("runtime_env.yaml")["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    assert GRACE_S < wait < 100, "longer than the workers have, shorter than the pod's preStop waits"
