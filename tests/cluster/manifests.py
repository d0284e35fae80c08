"""Strict schemas of the fields in use in cluster/, and the parts of the manifests that the tests look at."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"

# The fields in use of KubeRay's ray.io/v1 and of the pods inside, strictly: a misspelt field is an error here, where
# the operator would drop it without a word.
TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


TEXTS = {"type": "object", "additionalProperties": TEXT}
RESOURCES = _object("requests limits", requests=TEXTS, limits=TEXTS)
SECRET = _object("secretKeyRef", secretKeyRef=_object("name key", name=TEXT, key=TEXT, optional=FLAG))
CONTAINER = _object(
    "name image resources securityContext lifecycle",
    name=TEXT,
    image=TEXT,
    resources=RESOURCES,
    ports=_list(_object("name containerPort", name=TEXT, containerPort=COUNT)),
    env=_list(
        {
            "oneOf": [
                _object("name value", name=TEXT, value=TEXT),
                _object("name valueFrom", name=TEXT, valueFrom=SECRET),
            ]
        }
    ),
    volumeMounts=_list(_object("name mountPath", name=TEXT, mountPath=TEXT)),
    securityContext=_object(
        "allowPrivilegeEscalation capabilities",
        allowPrivilegeEscalation={"const": False},
        capabilities=_object("drop", drop={"const": ["ALL"]}),
    ),
    lifecycle=_object("preStop", preStop=_object("exec", exec=_object("command", command=_list(TEXT)))),
)
VOLUME = _object(
    "name",
    name=TEXT,
    persistentVolumeClaim=_object("claimName", claimName=TEXT),
    emptyDir=_object("medium", medium={"const": "Memory"}, sizeLimit=TEXT),
)
REQUIREMENT = _object("key operator values", key=TEXT, operator={"enum": ["In", "NotIn"]}, values=_list(TEXT))
AFFINITY = _object(
    "nodeAffinity",
    nodeAffinity=_object(
        "requiredDuringSchedulingIgnoredDuringExecution",
        requiredDuringSchedulingIgnoredDuringExecution=_object(
            "nodeSelectorTerms",
            nodeSelectorTerms=_list(_object("matchExpressions", matchExpressions=_list(REQUIREMENT))),
        ),
    ),
)
POD_SECURITY = _object(
    "runAsNonRoot runAsUser seccompProfile",
    runAsNonRoot={"const": True},
    runAsUser={"type": "integer", "minimum": 1},
    runAsGroup=COUNT,
    fsGroup=COUNT,
    fsGroupChangePolicy={"enum": ["Always", "OnRootMismatch"]},
    seccompProfile=_object("type", type={"const": "RuntimeDefault"}),
)
POD = _object(
    "spec",
    metadata=_object("labels", labels=TEXTS),
    spec=_object(
        "containers restartPolicy serviceAccountName securityContext terminationGracePeriodSeconds",
        serviceAccountName=TEXT,
        automountServiceAccountToken=FLAG,
        terminationGracePeriodSeconds=COUNT,
        securityContext=POD_SECURITY,
        affinity=AFFINITY,
        nodeSelector=TEXTS,
        containers=_list(CONTAINER),
        volumes=_list(VOLUME),
        restartPolicy={"const": "Never"},
        tolerations=_list(_object("key operator effect", key=TEXT, operator=TEXT, effect=TEXT)),
    ),
)
RAY_CLUSTER = _object(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=_object("mode", mode={"enum": ["token"]}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=_object("version", version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=COUNT),
    headGroupSpec=_object(
        "rayStartParams template",
        serviceType={"const": "ClusterIP"},
        rayStartParams=TEXTS,
        template=POD,
    ),
    workerGroupSpecs=_list(
        _object(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=POD,
        )
    ),
)
RAY_JOB = _object(
    "entrypoint runtimeEnvYAML rayClusterSpec",
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    metadata=TEXTS,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    rayClusterSpec=RAY_CLUSTER,
)


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return _object(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=_object("name", name=TEXT),
        spec=spec,
    )


KUBERAY_SCHEMAS = {
    "raycluster.yaml": _resource("RayCluster", RAY_CLUSTER),
    "rayjob.yaml": _resource("RayJob", RAY_JOB),
}


PREREQUISITE_SCHEMAS = {
    "ServiceAccount": _object(
        "apiVersion kind metadata",
        apiVersion={"const": "v1"},
        kind={"const": "ServiceAccount"},
        metadata=_object("name", name=TEXT),
    ),
    "PodDisruptionBudget": _object(
        "apiVersion kind metadata spec",
        apiVersion={"const": "policy/v1"},
        kind={"const": "PodDisruptionBudget"},
        metadata=_object("name", name=TEXT),
        spec=_object("minAvailable selector", minAvailable=COUNT, selector=_object("matchLabels", matchLabels=TEXTS)),
    ),
}


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def pinned(package: str) -> str:
    """The package's version in constraints.txt."""
    return re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def cluster_spec(name: str) -> dict[str, Any]:
    spec = load(f"kuberay/{name}")["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def ray_container(pod: dict[str, Any]) -> dict[str, Any]:
    [container] = pod["containers"]
    return container


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    """The variables of a pod's container: a value, or the secret that holds it."""
    return {
        variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in ray_container(pod)["env"]
    }
