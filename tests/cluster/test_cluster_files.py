"""The files in cluster/ are what Ray, KubeRay, Kubernetes and MLflow understand, as far as that shows without them."""

import copy
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.manifests import CLUSTER, KUBERAY_SCHEMAS, ROOT, cluster_spec, load, pinned, pods, ray_container

YAML_FILES = sorted(CLUSTER.rglob("*.yaml"))


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: str(file.relative_to(CLUSTER)))
def test_yaml_parses(file):
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(file.read_text()))


def test_every_ray_is_the_one_in_constraints():
    found = {}
    for file in [*YAML_FILES, CLUSTER / "Dockerfile"]:
        text = file.read_text()
        for version in re.findall(r"rayproject/ray:([0-9.]+)|rayVersion: \"([0-9.]+)\"|/runyard:([0-9.]+)", text):
            found.setdefault("".join(version), []).append(file.name)
    assert set(found) == {pinned("ray")}, found
    assert set(found[pinned("ray")]) == {"Dockerfile", "ray-aws.yaml", "raycluster.yaml", "rayjob.yaml"}


def test_mlflow_image_is_the_one_in_constraints():
    images = re.findall(r"runyard-mlflow:([0-9.]+)", (CLUSTER / "mlflow/kubernetes.yaml").read_text())
    assert images == [pinned("mlflow")]
    assert "--constraint" in (CLUSTER / "mlflow/Dockerfile").read_text()


def validate_launcher(config: dict[str, Any]) -> dict[str, Any]:
    """Ray's own offline check of a launcher file. Private, so it goes with the pinned Ray."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_launcher_file_is_valid():
    prepared = validate_launcher(load("ray-aws.yaml"))
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert head["resources"]["CPU"] == 0, "the head does no work"
    assert prepared["available_node_types"]["gpu"]["max_workers"] >= 1
    assert all("RAY_AUTH_MODE=token" in prepared[f"{role}_start_ray_commands"][-1] for role in ("head", "worker"))


def test_launcher_nodes_have_an_image_with_a_current_driver_and_a_profile():
    prepared = validate_launcher(load("ray-aws.yaml"))
    nodes = {name: node["node_config"] for name, node in prepared["available_node_types"].items()}
    assert set(nodes) == {"head", "gpu"}
    for node in nodes.values():
        assert node["ImageId"] == "ami-REPLACE", "Ray's latest_dlami is Ubuntu 18.04 with a driver before CUDA 13"
        assert node["IamInstanceProfile"]["Name"].startswith("REPLACE-")
    readme = (CLUSTER / "README.md").read_text()
    assert "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id" in readme
    assert "ami-REPLACE" in readme
    assert all(node["IamInstanceProfile"]["Name"] in readme for node in nodes.values())


def test_launcher_gpu_nodes_are_spot_and_the_head_is_not():
    nodes = validate_launcher(load("ray-aws.yaml"))["available_node_types"]
    assert nodes["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}, "no maximum price"
    assert "InstanceMarketOptions" not in nodes["head"]["node_config"]


def test_launcher_nodes_install_no_python_packages():
    prepared = validate_launcher(load("ray-aws.yaml"))
    for key in ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert not [line for line in prepared[key] if "pip" in line], key
    assert "boto3" in (CLUSTER / "Dockerfile").read_text(), "the head starts nodes with it"
    kuberay = {container["image"] for pod in pods(cluster_spec("raycluster.yaml")) for container in pod["containers"]}
    assert {prepared["docker"]["image"]} == kuberay, "the image of cluster/Dockerfile, which holds the dependencies"


def copied(dockerfile: str) -> set[str]:
    """The paths of the build context that a Dockerfile copies."""
    lines = re.findall(r"^COPY (.+)$", (CLUSTER / dockerfile).read_text(), re.MULTILINE)
    return {path for line in lines for path in line.split()[:-1] if not path.startswith("--")}


def test_build_context_is_what_the_images_copy(tmp_path):
    from docker.utils.build import exclude_paths

    needed = copied("Dockerfile") | copied("mlflow/Dockerfile")
    litter = {
        ".venv/bin/python",
        ".git/config",
        ".mypy_cache/x",
        "runs/r/checkpoint.pt",
        "data/a.jpg",
        "my coco/b.jpg",
        "mlflow.db",
        "cluster/mlflow/.env",
        "detector/__pycache__/boxes.pyc",
        "platform/runyard.egg-info/PKG-INFO",
    }
    sources = {name if (ROOT / name).is_file() else f"{name}/package/module.py" for name in needed}
    for name in litter | sources:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    sent = {name for name in exclude_paths(str(tmp_path), patterns) if (tmp_path / name).is_file()}
    assert sent == sources


@pytest.mark.parametrize("change", [{"upscaling_sped": 1.0}, {"max_workers": "2"}, {"head_node_type": "heat"}])
def test_launcher_faults_are_noticed(change):
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        validate_launcher(load("ray-aws.yaml") | change)


@pytest.mark.parametrize("name", KUBERAY_SCHEMAS)
def test_kuberay_manifest_is_valid(name):
    jsonschema.validate(load(f"kuberay/{name}"), KUBERAY_SCHEMAS[name])


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("raycluster.yaml", ["spec", "rayVersoin"], "2.60.0"),
        ("raycluster.yaml", ["apiVersion"], "ray.io/v1alpha1"),
        ("raycluster.yaml", ["spec", "headGroupSpec", "rayStartParams", "num-cpus"], 0),
        ("rayjob.yaml", ["spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplica"], 1),
        ("rayjob.yaml", ["spec", "submissionMode"], "KubernetesMode"),
    ],
)
def test_kuberay_faults_are_noticed(name, path, value):
    manifest = load(f"kuberay/{name}")
    holder = manifest
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, KUBERAY_SCHEMAS[name])


@pytest.mark.parametrize("name", KUBERAY_SCHEMAS)
def test_kuberay_pods_fit_together(name):
    spec = cluster_spec(name)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    images = {container["image"] for pod in pods(spec) for container in pod["containers"]}
    assert len(images) == 1
    for pod in pods(spec):
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounts == volumes
        assert "runyard" in volumes, "data and runs are shared"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) >= 1


def test_runtime_env_is_valid_and_the_rayjobs_is_the_same():
    from ray.runtime_env import RuntimeEnv

    runtime_env = load("runtime_env.yaml")
    assert RuntimeEnv(**runtime_env)
    assert runtime_env["env_vars"]["PYTHONPATH"] == "platform"
    of_the_job = yaml.safe_load(load("kuberay/rayjob.yaml")["spec"]["runtimeEnvYAML"])
    folder = of_the_job.pop("working_dir").removeprefix("local://")
    assert of_the_job == runtime_env
    assert f"WORKDIR {folder}\n" in (CLUSTER / "Dockerfile").read_text()


def test_rayjob_gives_options_that_the_entry_point_has():
    python, script, *arguments = load("kuberay/rayjob.yaml")["spec"]["entrypoint"].split()
    assert python == "python"
    shown = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True).stdout
    given = {argument for argument in arguments if argument.startswith("--")}
    assert {"--data", "--storage"} <= given <= set(re.findall(r"--[a-z-]+", shown))
    value = {name: arguments[arguments.index(name) + 1] for name in given}
    workers = int(value["--workers"])
    limits = ray_container(pods(cluster_spec("rayjob.yaml"))[1])["resources"]["limits"]
    assert workers * int(value["--gpus-per-worker"]) == int(limits["nvidia.com/gpu"])
    assert workers * int(value["--cpus-per-worker"]) <= int(limits["cpu"])
    assert 0 < int(value["--loader-workers"]) < int(value["--cpus-per-worker"]), "one CPU is left for the worker itself"
    assert int(value["--checkpoint-every-steps"]) > 0, "a node that is taken away costs less than an epoch"


def mlflow_server_options() -> set[str]:
    from mlflow.cli import server

    return {name for option in server.params for name in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("file", ["docker-compose.yaml", "kubernetes.yaml"])
def test_mlflow_is_started_with_options_that_it_has(file):
    documents = list(yaml.safe_load_all((CLUSTER / "mlflow" / file).read_text()))
    if file == "docker-compose.yaml":
        arguments = documents[0]["services"]["mlflow"]["command"]
    else:
        arguments = documents[1]["spec"]["template"]["spec"]["containers"][0]["args"]
    given = {argument.partition("=")[0] for argument in arguments}
    assert given <= mlflow_server_options()
    assert {"--allowed-hosts", "--backend-store-uri", "--artifacts-destination"} <= given


def test_mlflow_listens_on_loopback_and_no_password_has_a_default():
    text = (CLUSTER / "mlflow/docker-compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    assert services["mlflow"]["ports"] == ["${MLFLOW_BIND:-127.0.0.1}:5000:5000"]
    assert not any("ports" in services[name] for name in ("postgres", "minio"))
    assert set(re.findall(r"\$\{(\w+_PASSWORD):\?", text)) == {
        "POSTGRES_PASSWORD",
        "MINIO_ROOT_PASSWORD",
        "MLFLOW_ADMIN_PASSWORD",
        "MLFLOW_FLASK_PASSWORD",
    }
    made = re.search(r"for name in ([A-Z_ ]+); do", text)[1].split()
    assert {f"{name}_PASSWORD" for name in made} == set(re.findall(r"\$\{(\w+_PASSWORD)", text))
    assert not re.search(r"PASSWORD:-", text)


def test_mlflow_on_kubernetes_fits_together():
    service, deployment = yaml.safe_load_all((CLUSTER / "mlflow/kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"] == pod["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
    container = pod["spec"]["containers"][0]
    assert service["spec"]["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}
    used = {name for argument in container["args"] for name in re.findall(r"\$\((\w+)\)", argument)}
    assert used <= {variable["name"] for variable in container["env"]}
    assert pod["spec"]["enableServiceLinks"] is False


def test_mlflow_image_has_a_numeric_user_passwords_and_bucket_clients():
    lines = (CLUSTER / "mlflow/Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    [user] = re.findall(r"^USER (\d+)$", text, re.MULTILINE)
    assert f"--uid {user} " in text
    [extras] = re.findall(r"mlflow\[([a-z,]+)\]", text)
    assert set(extras.split(",")) >= {"db", "auth", "azure"}
    assert {"boto3", "google-cloud-storage"} <= set(text.split())
    pod = mlflow_pod()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == int(user)
    assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False


def mlflow_pod() -> dict[str, Any]:
    _, deployment = yaml.safe_load_all((CLUSTER / "mlflow/kubernetes.yaml").read_text())
    return deployment["spec"]["template"]["spec"]


def mlflow_auth_source(file: str) -> Path:
    """A file of MLflow's basic-auth app. Its package needs Flask-WTF, which only the server's image has."""
    import mlflow.server

    return Path(mlflow.server.__file__).with_name("auth") / file


def read_auth_config() -> Any:
    specification = importlib.util.spec_from_file_location("mlflow_auth_config", mlflow_auth_source("config.py"))
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.read_auth_config()


def test_mlflow_asks_for_a_password_and_keeps_its_users_in_postgres(tmp_path, monkeypatch):
    composed = load("mlflow/docker-compose.yaml")
    manifest = (CLUSTER / "mlflow/kubernetes.yaml").read_text()
    commented = re.search(r"^#   \[mlflow\]\n(?:#   \w+ = .+\n)+", manifest, re.MULTILINE)[0]
    for name, text in (
        ("compose.ini", composed["configs"]["auth"]["content"].replace("${POSTGRES_PASSWORD}", "PASSWORD")),
        ("kubernetes.ini", commented.replace("#   ", "")),
    ):
        (tmp_path / name).write_text(text)
        monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / name))
        config = read_auth_config()
        assert config.database_uri.startswith("postgresql+psycopg2://"), "SQLite in a container is lost with it"
        assert config.admin_password is None, "it comes from the environment"
    container, server = mlflow_pod()["containers"][0], composed["services"]["mlflow"]
    assert "--app-name=basic-auth" in container["args"]
    assert "--app-name=basic-auth" in server["command"]
    secrets = {variable["name"] for variable in container["env"] if "secretKeyRef" in variable.get("valueFrom", {})}
    needed = {"MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"}
    assert needed <= secrets
    assert needed <= set(server["environment"])
    [path] = [variable["value"] for variable in container["env"] if variable["name"] == "MLFLOW_AUTH_CONFIG_PATH"]
    [volume] = mlflow_pod()["volumes"]
    [mount] = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert path == f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}"
    assert server["environment"]["MLFLOW_AUTH_CONFIG_PATH"] == server["configs"][0]["target"]


def test_mlflow_probes_need_no_password():
    source = mlflow_auth_source("__init__.py").read_text()
    open_paths = re.findall(r'"(/\w+)"', re.search(r"^_UNPROTECTED_PATH_PREFIXES = (.+)$", source, re.MULTILINE)[1])
    container = mlflow_pod()["containers"][0]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[kind]["httpGet"]["path"] in open_paths, kind


def test_every_key_of_the_mlflow_secret_is_in_the_command_that_makes_it():
    text = (CLUSTER / "mlflow/kubernetes.yaml").read_text()
    made = set(re.findall(r"--from-literal=([\w-]+)=", text)) | set(re.findall(r"--from-file=(\S+)", text))
    assert made == set(re.findall(r"name: mlflow-store, key: ([\w-]+)", text)) | {"auth.ini"}
