"""CNI's own programs run here and say which versions they speak."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.servers import CniBinaries


def versions(plugin: Path) -> list[str]:
    done = subprocess.run(
        [plugin],
        input=json.dumps({"cniVersion": "1.0.0"}),
        env={"CNI_COMMAND": "VERSION"},
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(done.stdout)["supportedVersions"])


def test_the_reference_plugins_speak_the_versions_that_we_do(cni_binaries: CniBinaries) -> None:
    for plugin in (cni_binaries.macvlan, cni_binaries.bridge, cni_binaries.host_local):
        assert {"0.3.1", "0.4.0", "1.0.0", "1.1.0"} <= set(versions(plugin)), plugin.name


def test_cnitool_starts(cni_binaries: CniBinaries) -> None:
    done = subprocess.run([cni_binaries.cnitool], capture_output=True, text=True, check=False)
    assert "cnitool" in done.stdout + done.stderr
