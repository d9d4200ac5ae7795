"""A substitute for the base image: a root file system from debootstrap, with this machine's apt and pip settings.

Image registries may be out of reach; this machine's package mirrors are not. The image's tag contains a hash of this
file, so any change here rebuilds it: keep unrelated code out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.images.engine import NoDocker, exists

BASE = "sniperface-test-base"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
BEGIN = "-----BEGIN CERTIFICATE-----"
WHEELS = "/opt/wheels"  # in the base image


def base_image() -> str:
    """Name and tag of the substitute; builds it if it is missing. Raises NoDocker."""
    pip, wheels = pip_settings()
    apt = apt_sources()
    inputs = [Path(__file__).read_bytes(), pip.encode(), apt.encode(), *(os.fsencode(wheel.name) for wheel in wheels)]
    with contextlib.suppress(OSError):
        inputs.append(Path(CERTIFICATES).read_bytes())
    image = f"{BASE}:{hashlib.sha256(b'|'.join(inputs)).hexdigest()[:12]}"
    if exists(image):
        return image
    if not shutil.which("debootstrap", path="/usr/sbin:/usr/bin") or os.getuid() != 0:
        raise NoDocker("needs Docker: and its base image is made by debootstrap, as root; install debootstrap")
    with tempfile.TemporaryDirectory(prefix="sniperface-base-") as folder:
        root = Path(folder, "root")
        mirror, suite = apt.splitlines()[0].split()[1:3]
        run(["debootstrap", "--variant=minbase", "--include=ca-certificates", suite, str(root), mirror])
        run(["chroot", str(root), "apt-get", "clean"])
        (root / "etc/apt/sources.list").write_text(apt)
        for setting in Path("/etc/apt/apt.conf.d").glob("*"):
            if "Acquire::" in setting.read_text(errors="replace"):
                shutil.copy(setting, root / "etc/apt/apt.conf.d")
        (root / "etc/pip.conf").write_text(pip)
        if Path(CERTIFICATES).exists():
            trusted = Path(CERTIFICATES).read_text(encoding="utf-8").split(BEGIN)[1:]
            for number, certificate in enumerate(trusted):  # one per file, for update-ca-certificates
                file = root / f"usr/local/share/ca-certificates/here-{number}.crt"
                file.write_text(BEGIN + certificate, encoding="utf-8")
            run(["chroot", str(root), "update-ca-certificates"])
        (root / WHEELS.lstrip("/")).mkdir(parents=True)
        for wheel in wheels:
            shutil.copy(wheel, root / WHEELS.lstrip("/"))
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
            path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            imported = subprocess.run(
                ["docker", "import", "--change", f"ENV {path}", "-", image], stdin=tar.stdout, capture_output=True
            )
        if tar.returncode or imported.returncode:
            raise RuntimeError(f"docker import failed: {imported.stderr.decode()}")
    return image


def apt_sources() -> str:
    """This machine's Debian or Ubuntu mirror and suites, as `deb` lines; omits other sources. Raises NoDocker."""
    form = "$(ORIGIN)|deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    if not shutil.which("apt-get"):
        raise NoDocker("needs Docker: and its base image is made on a Debian-like machine only")
    lines: list[str] = []
    for update in (False, True):  # without package lists apt does not know a mirror's origin
        if update and not lines and os.getuid() == 0:
            run(["apt-get", "update"])
        listing = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
        lines = [line.split("|")[1] for line in listing.splitlines() if line.split("|")[0] in ("Debian", "Ubuntu")]
    if not lines:
        raise NoDocker("needs Docker: and its base image needs apt-get update on a Debian-like machine")
    return "".join(f"{line}\n" for line in sorted(set(lines), key=lambda line: line.split()[2]))


def pip_settings() -> tuple[str, list[Path]]:
    """pip.conf for the base image, from this machine's settings, and torch wheels of its find-links folders."""
    listing = run([sys.executable, "-m", "pip", "config", "list"])
    told = {}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.partition(".")
        if section in ("global", "install", ":env:"):
            told[key] = value.strip("'\"")
    kept = {key: told[key] for key in ("index-url", "timeout", "default-timeout", "trusted-host") if key in told}
    extra = [word for word in told.get("extra-index-url", "").split() if not word.startswith("file:")]
    folders = [Path(word.removeprefix("file://")) for word in told.get("find-links", "").split()]
    wheels = [wheel for folder in folders if folder.is_dir() for wheel in sorted(folder.glob("torch-*.whl"))]
    kept |= {"extra-index-url": " ".join(extra)} if extra else {}
    kept |= {"find-links": WHEELS} if wheels else {}
    kept |= {"cert": CERTIFICATES} if Path(CERTIFICATES).exists() else {}
    return "[global]\n" + "".join(f"{key} = {value}\n" for key, value in sorted(kept.items())), wheels


def run(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv[:3])} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout
