"""The pages keep up with the code: settings, links between pages, names of folders."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from actors.applications import application
from actors.attachments import attachments
from actors.coordination import coordinators, discovery
from actors.events import notices
from actors.node import installer, residence
from api import retirement, settings
from ctl.main import VERBS

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = sorted([CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")])


@pytest.mark.parametrize(
    ("program", "known"),
    [
        ("spiderpool-agent", settings.AGENT),
        ("spiderpool-controller", settings.CONTROLLER),
        ("spiderpool-standalone", settings.STANDALONE),
    ],
)
def test_every_setting_has_its_row(program: str, known: tuple[Any, ...]) -> None:
    text = (CHECKOUT / "docs" / "configuration.md").read_text()
    section = text.partition(f"## {program}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([A-Z_]+)` ", section, re.MULTILINE) == [setting.env.name for setting in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_folders_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:api|ipam|telemetry|runtime|cni|actors|ctl|tests|helm)/[\w/.]*)`", page.read_text())
    assert [name for name in named if not (CHECKOUT / name).exists()] == []


def test_every_verb_has_its_section_and_an_example() -> None:
    text = (CHECKOUT / "docs" / "spiderpoolctl.md").read_text()
    headings = {verb for line in re.findall(r"^## (.*)$", text, re.MULTILINE) for verb in re.split(r"[ ,]+", line)}
    assert [verb for verb in VERBS if verb not in headings] == []
    assert [verb for verb in VERBS if f"    spiderpoolctl {verb}" not in text] == []


def test_every_event_has_its_row() -> None:
    text = (CHECKOUT / "docs" / "events.md").read_text()
    rows = {reason for line in text.splitlines() if line.startswith("| `") for reason in re.findall(r"`(\w+)`", line)}
    said = {
        *(notices.FAILED_ALLOCATE, notices.IP_CONFLICT, notices.POOL_EXHAUSTED, notices.POOL_OVERLAP),
        *(notices.NOT_RELEASED, notices.DELETION_BLOCKED, notices.CERTIFICATE_NOT_KEPT),
        *(application.POOL_FAILED, application.SUBNET_CHANGED),
        *(installer.SHADOWED, installer.FAILED, installer.LACKS, installer.RESTORED, installer.BACK),
        *(attachments.INVALID, attachments.TAKEN, attachments.FAILED),
        *(retirement.WITHDRAWN, retirement.LEFT, residence.NO_CONTROLLER),
        *(coordinators.CLUSTER_NETWORK_CHANGED, coordinators.COORDINATOR_SYNCED),
        *get_args(discovery.NotReadyReason.__value__),
    }
    assert rows == said
