"""The manifests of docs/kubernetes, against Kubernetes' own schemas and against the server."""

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from plimsoll.settings import PREFIX, Settings
from plimsoll.settings_sources import load_settings
from plimsoll.sizes import Size
from plimsoll.telemetry.metrics import Telemetry
from tests.running_server import ROOT

FOLDER = ROOT / "docs/kubernetes"
VERSIONS = ("1.30", "1.37")  # of Kubernetes
LABELS = {"app": "plimsoll"}
OWNER = "plimsoll-collections"


def read(name: str) -> dict[str, Any]:
    """Kind → what is written in a file."""
    documents = list(yaml.safe_load_all((FOLDER / name).read_text("utf-8")))
    found = {document["kind"]: document for document in documents}
    assert len(found) == len(documents)
    return found


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    return read("plimsoll.yaml")


@pytest.fixture(scope="module")
def of_collections() -> dict[str, Any]:
    return read("collections.yaml")


@pytest.fixture
def pod(manifests: dict[str, Any]) -> dict[str, Any]:
    return manifests["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    [found] = pod["containers"]
    return found


@pytest.fixture
def settings(manifests: dict[str, Any], container: dict[str, Any], tmp_path) -> Settings:
    """As the server in the pod reads them, but for the keys, whose file is not here."""
    environ = dict(manifests["ConfigMap"]["data"])
    assert [one["name"] for one in container["env"]] == ["PLIMSOLL_API_KEYS"]
    return load_settings(environ=environ, directory=tmp_path).settings


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_manifest(
    manifests: dict[str, Any], of_collections: dict[str, Any], version: str
):
    """Its schemas, strictly: an unknown key would be dropped, with what it was to do."""
    assert manifests.keys() >= {
        "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"
    }  # fmt: skip
    for document in (*manifests.values(), *of_collections.values()):
        kubernetes_validate.validate(document, version, strict=True)


def test_a_mistake_would_be_found(manifests: dict[str, Any]):
    """Control: a validator that takes everything proves nothing."""
    wrong = manifests["PodDisruptionBudget"] | {"spec": {"maxUnavailble": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_every_part_means_the_same_pods(manifests: dict[str, Any]):
    """A selector that fits none protects and scales none, and says nothing."""
    deployment = manifests["Deployment"]
    assert deployment["spec"]["template"]["metadata"]["labels"] == LABELS
    assert deployment["spec"]["selector"] == {"matchLabels": LABELS}
    assert manifests["Service"]["spec"]["selector"] == LABELS
    assert manifests["PodDisruptionBudget"]["spec"]["selector"] == {"matchLabels": LABELS}
    [chosen] = manifests["NetworkPolicy"]["spec"]["podSelector"]["matchExpressions"]
    assert chosen == {"key": "app", "operator": "In", "values": ["plimsoll", OWNER]}
    target = manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]  # each `apply` would undo the autoscaler


def test_the_limit_is_the_budget(container: dict[str, Any], settings: Settings):
    """Without swap and promised in full: what the node lacks would be taken from the pod."""
    resources = container["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert settings.memory_budget is None
    compose = (ROOT / ".env.example").read_text("utf-8")
    assert Size.parse(resources["limits"]["memory"]) == Size.parse(
        re.findall(r"MEMORY_LIMIT=(\w+)", compose)[0]
    )
    assert settings.threads == int(resources["limits"]["cpu"])


def test_the_pod_may_do_nothing_that_it_need_not(pod: dict[str, Any], container: dict[str, Any]):
    """Of the restricted profile of Kubernetes' pod security standards, and a read-only root."""
    user = int(re.findall(r"^USER (\d+):", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[0])
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == user
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not pod["automountServiceAccountToken"]


def test_what_the_server_writes_lies_on_a_volume(
    pod: dict[str, Any], container: dict[str, Any], settings: Settings
):
    """The root is read-only. A volume in memory would count against the budget."""
    paths = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    [name] = [name for path, name in paths.items() if settings.cache_dir.is_relative_to(path)]
    assert "medium" not in volumes[name]["emptyDir"]
    assert paths.keys() >= {"/tmp"}
    assert paths.keys() >= {container["env"][0]["value"].rpartition("/")[0]}
    assert set(paths.values()) == volumes.keys()
    assert not any(settings.data_dir.is_relative_to(path) for path in paths)


def test_a_pod_that_ends_is_left_out_first_and_has_time_to_finish(
    manifests: dict[str, Any], pod: dict[str, Any], container: dict[str, Any], settings: Settings
):
    """Else a rolling update loses requests."""
    probe = container["readinessProbe"]
    unready_s = probe["failureThreshold"] * probe["periodSeconds"] + probe["timeoutSeconds"]
    assert settings.drain_delay_s > unready_s
    grace_s = pod["terminationGracePeriodSeconds"]
    assert grace_s > settings.drain_delay_s + settings.drain_s
    assert manifests["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_probes_ask_routes_that_are_open(container: dict[str, Any]):
    """The kubelet has no key. Liveness is slower to judge than readiness."""
    paths = {
        name: container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "readiness", "liveness")
    }
    assert paths == {
        "startup": "/health/ready",
        "readiness": "/health/ready",
        "liveness": "/health/live",
    }
    assert container["ports"][0]["name"] == container["livenessProbe"]["httpGet"]["port"]
    live, ready = container["livenessProbe"], container["readinessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] > 4 * (
        ready["periodSeconds"] * ready["failureThreshold"]
    )


def test_the_autoscaler_asks_for_a_gauge_that_the_server_has(manifests: dict[str, Any]):
    """And the adapter offers it under that name."""
    [metric] = manifests["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert (name, "gauge") in {(one.name, one.type) for one in Telemetry("0").metrics()}
    adapter = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text("utf-8"))
    [rule] = adapter["rules"]["custom"]
    assert rule["name"] == {"matches": name}
    assert rule["seriesQuery"].startswith(name)


def test_the_settings_are_known(settings: Settings, manifests: dict[str, Any]):
    """The server starts with them, reachable from other pods, and serves clients with keys."""
    assert all(name.startswith(PREFIX) for name in manifests["ConfigMap"]["data"])
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert not settings.allow_anonymous


def test_collections_have_one_pod_and_a_volume_and_are_else_as_the_others(
    manifests: dict[str, Any], of_collections: dict[str, Any], container: dict[str, Any], tmp_path
):
    """Two pods would have two files. What is held of the others above holds for this one too."""
    spec = of_collections["StatefulSet"]["spec"]
    assert spec["replicas"] == 1
    own = spec["template"]["spec"]
    assert spec["template"]["metadata"]["labels"] == {"app": OWNER}
    assert of_collections["Service"]["spec"]["selector"] == {"app": OWNER}
    assert spec["serviceName"] == of_collections["Service"]["metadata"]["name"]
    of_others = manifests["Deployment"]["spec"]["template"]["spec"]
    for name in (
        "securityContext",
        "terminationGracePeriodSeconds",
        "automountServiceAccountToken",
    ):
        assert own[name] == of_others[name]
    [written] = own["containers"]
    differing = {name for name in container if written[name] != container[name]}
    assert differing == {"env", "resources", "volumeMounts"}
    assert written["resources"]["limits"]["memory"] == container["resources"]["limits"]["memory"]
    variables = {one["name"]: one["value"] for one in written["env"]}
    del variables["PLIMSOLL_API_KEYS"]
    environ = manifests["ConfigMap"]["data"] | variables
    settings = load_settings(environ=environ, directory=tmp_path).settings
    [claim] = spec["volumeClaimTemplates"]
    [kept] = [
        mount["mountPath"]
        for mount in written["volumeMounts"]
        if mount["name"] == claim["metadata"]["name"]
    ]
    assert settings.data_dir.is_relative_to(kept)
    assert settings.cache_dir.is_relative_to(kept)
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
