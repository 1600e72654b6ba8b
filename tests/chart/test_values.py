"""What the chart takes as values, and what it says to the rest."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.conftest import CHART, Render
from tests.servers import CommandFailed
from tools.chart import schema

WITHOUT_EFFECT = yaml.safe_load((CHART / "files" / "without-effect.yaml").read_text(encoding="utf-8"))


def test_schema_is_made_from_the_values() -> None:
    assert (CHART / "values.schema.json").read_text(encoding="utf-8") == schema.render(), "run: make generate"


def test_every_mapping_with_keys_is_closed() -> None:
    def check(part: dict[str, Any], path: str) -> None:
        if "properties" in part:
            assert part["additionalProperties"] is False, path
            assert part["propertyNames"]["enum"] == list(part["properties"]), path
        for key, inner in part.get("properties", {}).items():
            check(inner, f"{path}.{key}")

    values = (CHART / "values.yaml").read_text(encoding="utf-8")
    check(schema.build(values, "[]"), "")


def refusal(render: Render, *values: str) -> str:
    with pytest.raises(CommandFailed) as failed:
        render(*values)
    return failed.value.stderr


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("spiderpoolAgnt.name=x", ("'spiderpoolAgnt' not allowed", "'spiderpoolAgent'")),
        ("ipam.enableIPV6=true", ("at '/ipam': additional properties 'enableIPV6' not allowed", "'enableIPv6'")),
        ("spiderpoolController.replicas=two", ("/spiderpoolController/replicas", "got string, want integer")),
        ("spiderpoolController.rpcPort=70000", ("/spiderpoolController/rpcPort", "maximum")),
        ("spiderpoolAgent.debug.logLevel=loud", ("/spiderpoolAgent/debug/logLevel", "'debug', 'info'")),
        ("global.cniBinHostPath=opt/cni", ("/global/cniBinHostPath", "pattern")),
        ("spiderpoolController.tls.method=own", ("/spiderpoolController/tls/method", "'controller', 'auto'")),
        ("spiderpoolController.tls.controller.certValidityDuration=0", ("certValidityDuration", "exclusiveMinimum")),
        ("spiderpoolController.tls.controller.renewAfterPercent=100", ("renewAfterPercent", "maximum")),
        ("spiderpoolController.shutdownDelaySeconds=601", ("shutdownDelaySeconds", "maximum")),
        ("coordinator.mode=sideways", ("/coordinator/mode", "'underlay'")),
        ("spiderpoolAgent.updateStrategy.rollingUpdate.maxUnavailable=some", ("maxUnavailable", "pattern")),
        ("spiderpoolAgent.image.digest=abc", ("/spiderpoolAgent/image/digest", "pattern")),
    ],
)
def test_what_is_unknown_or_does_not_fit_is_named(render: Render, value: str, words: tuple[str, ...]) -> None:
    text = refusal(render, value)
    for each in words:
        assert each in text


@pytest.mark.parametrize("entry", WITHOUT_EFFECT, ids=lambda entry: entry["key"])
def test_what_the_original_has_and_we_do_not_is_refused_with_the_reason(render: Render, entry: dict[str, str]) -> None:
    key = f"{entry['key']}.{entry['switch']}" if "switch" in entry else entry["key"]
    assert f"  {entry['key']}: {entry['reason']}" in refusal(render, f"{key}=true")


@pytest.mark.parametrize("entry", WITHOUT_EFFECT, ids=lambda entry: entry["key"])
def test_what_asks_for_nothing_passes(render: Render, entry: dict[str, str]) -> None:
    key = f"{entry['key']}.{entry['switch']}" if "switch" in entry else entry["key"]
    render(f"{key}={entry.get('default', 'false')}")


def test_all_of_them_at_once(render: Render) -> None:
    text = refusal(render, "multus.multusCNI.name=x", "sriov.install=true", "sriov.replicas=2")
    assert "  multus.multusCNI: " in text
    assert "  sriov: " in text
    render("sriov.install=false", "sriov.replicas=2")


@pytest.mark.parametrize("path", sorted((CHART / "templates").glob("*.yaml")), ids=lambda path: path.name)
def test_no_template_is_indented_by_tabs_or_ends_in_blanks(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        assert "\t" not in line and line == line.rstrip(), f"{path.name}:{number}"
