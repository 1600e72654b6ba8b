"""The archive's form: what containerd, docker, podman and skopeo read."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from pathlib import Path

import pytest

from tests.image.conftest import CHECKOUT, Archive, blob, make
from tools.image import oci, project

MAX_BYTES = 80_000_000


def test_every_blob_is_what_its_name_says_and_nothing_is_left_over(image: Archive) -> None:
    with tarfile.open(image.path) as archive:
        names = {name for name in archive.getnames() if name.startswith("blobs/sha256/")}
        wanted = [image.index["manifests"][0], image.manifest["config"], *image.manifest["layers"]]
        for descriptor, diff_id in zip(wanted, [None, None, *image.config["rootfs"]["diff_ids"]], strict=True):
            content = blob(archive, descriptor["digest"])
            assert descriptor["digest"] == "sha256:" + hashlib.sha256(content).hexdigest()
            assert descriptor["size"] == len(content)
            if diff_id:
                plain = zlib.decompress(content, wbits=31)
                assert diff_id == "sha256:" + hashlib.sha256(plain).hexdigest()
        assert names == {"blobs/" + descriptor["digest"].replace(":", "/") for descriptor in wanted}


def test_names_are_the_ones_that_containerd_and_docker_look_for(image: Archive) -> None:
    version = project.version(CHECKOUT)
    name = f"ghcr.io/spidernet-io/spiderpool/spiderpool:v{version}"
    (described,) = image.index["manifests"]
    assert described["annotations"] == {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": f"v{version}",
    }
    assert described["platform"] == {"architecture": image.architecture, "os": "linux"}
    (legacy,) = image.legacy
    assert legacy["RepoTags"] == [name]
    assert legacy["Config"] == "blobs/" + image.manifest["config"]["digest"].replace(":", "/")
    assert len(legacy["Layers"]) == len(image.manifest["layers"]) == 3
    assert image.said[1:3] == [name, described["digest"]]


def test_a_container_is_nobody_with_labels(image: Archive) -> None:
    assert image.config["architecture"] == image.architecture
    assert image.config["config"]["User"] == "65532:65532"
    labels = image.config["config"]["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.title"] == "Spiderpool"
    assert labels["org.opencontainers.image.version"] == project.version(CHECKOUT)


def test_it_is_small(image: Archive) -> None:
    assert image.path.stat().st_size <= MAX_BYTES


def test_the_builder_does_not_show(image: Archive) -> None:
    for member in image.members:
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", ""), member.name
        assert member.mtime == oci.epoch(), member.name
        assert not member.mode & 0o6000, f"{member.name} is setuid"
        assert not member.mode & 0o022 or member.issym() or member.name == "tmp", f"{member.name} is writable by all"


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    done = make("riscv64", output=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "image: no image for 'riscv64': ARCH is one of amd64, arm64\n"
    assert not list(tmp_path.iterdir())


def test_one_folder_makes_an_archive_and_the_same_bytes_under_another_umask(tmp_path: Path) -> None:
    digests = []
    for name, mode in (("one", 0o600), ("two", 0o664)):
        root = tmp_path / name
        (root / "bin").mkdir(parents=True)
        (root / "bin" / "tool").write_text("content")
        (root / "bin" / "tool").chmod(mode | 0o100)
        (root / "link").symlink_to("bin/tool")
        out = tmp_path / f"{name}.tar"
        digests.append(oci.write_archive(out, rootfs=root, name="localhost/test:1", cmd=["/bin/tool"]))
    assert digests[0] == digests[1]
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one.tar", "two", "two.tar"]


@pytest.mark.parametrize(
    ("name", "architecture", "message"),
    [("localhost:5000/test", "amd64", "no tag"), ("test:1", "riscv64", "none of amd64, arm64")],
)
def test_an_archive_nobody_could_use_is_refused(tmp_path: Path, name: str, architecture: str, message: str) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(ValueError, match=message):
        oci.write_archive(tmp_path / "out.tar", rootfs=tmp_path / "root", name=name, architecture=architecture)
    assert not (tmp_path / "out.tar").exists()
