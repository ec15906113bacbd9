"""The cluster files: what `ray up` does with ours before it calls AWS, EC2's forms, KubeRay's."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
KUBERAY = ROOT / "deploy" / "kuberay"

Config = dict[str, Any]


@pytest.fixture(scope="module")
def prepared() -> Config:
    """The file as `ray up` has it before it asks AWS anything."""
    from ray.autoscaler._private.aws.config import _configure_from_network_interfaces
    from ray.autoscaler._private.util import prepare_config, validate_config

    read: Config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8"))
    validate_config({**read, "cluster_synced_files": []})
    config: Config = prepare_config(read)
    validate_config(config)
    # The first that the AWS provider does: subnets and groups are stated once, for each interface.
    found: Config = _configure_from_network_interfaces(config)
    return found


def node_configs(config: Config) -> Iterator[tuple[str, Config]]:
    for name, kind in config["available_node_types"].items():
        yield name, kind["node_config"]


def test_the_launcher_takes_the_file(prepared: Config) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.providers import _NODE_PROVIDERS

    assert _NODE_PROVIDERS[prepared["provider"]["type"]](prepared["provider"]) is AWSNodeProvider
    kinds = prepared["available_node_types"]
    assert prepared["head_node_type"] == "head"
    assert kinds["head"]["max_workers"] == 0
    assert sum(kind["min_workers"] for kind in kinds.values()) == 1
    assert kinds["gpu_spot"]["max_workers"] <= prepared["max_workers"]
    # The defaults of the launcher would install and start another Ray.
    assert not any("pip install -U ray" in command for command in prepared["setup_commands"])


def test_ec2_knows_every_field_of_every_node(prepared: Config) -> None:
    import botocore.session
    from botocore.validate import ParamValidator

    ec2 = botocore.session.get_session().get_service_model("ec2")
    form = ec2.operation_model("RunInstances").input_shape
    for name, node in node_configs(prepared):
        # What the provider adds and takes away before it calls.
        request = {k: v for k, v in node.items() if k not in ("SubnetIds", "SecurityGroupIds")}
        report = ParamValidator().validate(request | {"MinCount": 1, "MaxCount": 1}, form)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
        assert set(request) <= set(form.members), name


def test_gpu_nodes_have_an_efa_interface_on_every_card_and_stand_close(prepared: Config) -> None:
    gpu_nodes = {name: node for name, node in node_configs(prepared) if name != "head"}
    for node in gpu_nodes.values():
        assert node["InstanceType"] == "p4d.24xlarge"
        assert node["Placement"]["GroupName"]
        cards = node["NetworkInterfaces"]
        assert [card["NetworkCardIndex"] for card in cards] == [0, 1, 2, 3]
        assert [card["DeviceIndex"] for card in cards] == [0, 1, 1, 1]
        assert {card["InterfaceType"] for card in cards} == {"efa"}
        assert len({(card["SubnetId"], *card["Groups"]) for card in cards}) == 1
    markets = {n: node.get("InstanceMarketOptions") for n, node in gpu_nodes.items()}
    assert markets == {"gpu_spot": {"MarketType": "spot"}, "gpu_on_demand": None}


def test_every_ray_process_of_the_cluster_asks_for_tokens(prepared: Config) -> None:
    commands = prepared["head_start_ray_commands"] + prepared["worker_start_ray_commands"]
    started = [command for command in commands if "ray start" in command]
    assert len(started) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in started)
    assert "~/.ray/auth_token" in prepared["file_mounts"]
    for command in (*commands, *prepared["setup_commands"], *prepared["head_setup_commands"]):
        shlex.split(command)


def test_the_head_installs_the_unit_of_the_service(prepared: Config) -> None:
    (copied,) = [c for c in prepared["head_setup_commands"] if "/etc/systemd/system" in c]
    path = re.search(r"~/mics-elastic/(\S+)", copied)
    assert path is not None
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string((ROOT / path[1]).read_text(encoding="utf-8"))
    assert unit["Service"]["ExecStart"].endswith("/bin/mics serve")
    assert unit["Service"]["Restart"] == "always"
    assert unit["Install"]["WantedBy"] == "multi-user.target"


# KubeRay. No package of its resource definitions was found on PyPI, npm or in Debian, so the fields
# that are used here are written down by hand, after the types of its API.

QUANTITY = {"type": "string", "pattern": r"^\d+(m|Ki|Mi|Gi|Ti)?$"}
OBJECT = {"type": "object"}


def closed(required: list[str], **properties: Any) -> Config:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


AMOUNTS = {"type": "object", "additionalProperties": QUANTITY}
CONTAINER = closed(
    ["name", "image", "resources"],
    name={"type": "string"},
    image={"type": "string"},
    command={"type": "array", "items": {"type": "string"}},
    env={
        "type": "array",
        "items": closed(
            ["name"], name={"type": "string"}, value={"type": "string"}, valueFrom=OBJECT
        ),
    },
    ports={
        "type": "array",
        "items": closed(
            ["containerPort"], name={"type": "string"}, containerPort={"type": "integer"}
        ),
    },
    resources=closed(["requests", "limits"], requests=AMOUNTS, limits=AMOUNTS),
    volumeMounts={
        "type": "array",
        "items": closed(
            ["name", "mountPath"], name={"type": "string"}, mountPath={"type": "string"}
        ),
    },
)
POD = closed(
    ["spec"],
    spec=closed(
        ["containers"],
        restartPolicy={"enum": ["Never", "Always"]},
        shareProcessNamespace={"type": "boolean"},
        nodeSelector={"type": "object", "additionalProperties": {"type": "string"}},
        containers={"type": "array", "items": CONTAINER, "minItems": 1},
        volumes={"type": "array", "items": {"type": "object", "required": ["name"]}},
    ),
)
PARAMETERS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
CLUSTER = closed(
    ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
    rayVersion={"type": "string"},
    authOptions=closed(["mode"], mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=closed([], version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=COUNT),
    headGroupSpec=closed(["template"], rayStartParams=PARAMETERS, template=POD),
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            ["groupName", "template", "minReplicas", "maxReplicas"],
            groupName={"type": "string", "maxLength": 63},
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=PARAMETERS,
            template=POD,
        ),
    },
)
JOB = closed(
    ["entrypoint", "rayClusterSpec"],
    entrypoint={"type": "string"},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=COUNT,
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER,
)


@pytest.mark.parametrize(
    ("file", "kind", "form"),
    [("raycluster.yaml", "RayCluster", CLUSTER), ("rayjob.yaml", "RayJob", JOB)],
)
def test_the_kuberay_examples_have_the_form_of_their_resources(
    file: str, kind: str, form: Config
) -> None:
    import ray

    resource = yaml.safe_load((KUBERAY / file).read_text(encoding="utf-8"))
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", kind)
    jsonschema.validate(resource["spec"], form)
    spec = resource["spec"].get("rayClusterSpec", resource["spec"])
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    pods = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in pods):
        assert pod["restartPolicy"] == "Never"
        named = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= named
            # Guaranteed pods: Ray counts what is requested, and is killed above the limit.
            assert container["resources"]["requests"] == container["resources"]["limits"]
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_service_beside_the_kuberay_head_shares_what_a_driver_needs() -> None:
    spec = yaml.safe_load((KUBERAY / "raycluster.yaml").read_text(encoding="utf-8"))["spec"]
    pod = spec["headGroupSpec"]["template"]["spec"]
    head, service = pod["containers"]
    assert (head["name"], service["command"]) == ("ray-head", ["mics", "serve"])
    assert pod["shareProcessNamespace"] is True
    kinds = {volume["name"]: volume.get("emptyDir") for volume in pod["volumes"]}
    places = [
        {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        for container in (head, service)
    ]
    for path in ("/tmp/ray", "/dev/shm"):
        (name,) = {place[path] for place in places}
        assert kinds[name] is not None
    assert kinds[places[0]["/dev/shm"]]["medium"] == "Memory"


def test_the_entry_point_of_the_kuberay_job_is_the_driver_with_a_mounted_job() -> None:
    spec = yaml.safe_load((KUBERAY / "rayjob.yaml").read_text(encoding="utf-8"))["spec"]
    *command, file = shlex.split(spec["entrypoint"])
    assert command == ["python", "-m", "mics_core.cluster.driver"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert str(Path(file).parent) in [mount["mountPath"] for mount in head["volumeMounts"]]
