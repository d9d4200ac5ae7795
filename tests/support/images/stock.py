"""A stock image for the tests: an SSH server, Python, git and tmux as in RunPod's own images, and none of our code.

A folder with the package files replaces the package index; pip still checks their hashes. The image contains no
environment. The system's packages are those of our image, in the same layer.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path

from tests.support.images.base import WHEELS, base_image
from tests.support.images.engine import check_docker, docker, exists

STOCK = "sniperface-test-stock"
LABEL = "sniperface.test"
PROJECT = Path(__file__).parents[3]
LISTS = tuple(f"requirements/{name}.txt" for name in ("build", "app", "s3", "wandb", "torch"))
# Like RunPod's own start command, it serves SSH for the keys in PUBLIC_KEY. Our pods replace it.
DOCKERFILE = """\
FROM {base}
{system}COPY *.txt /lists/
RUN python3 -m venv /fetch && for list in build app s3 wandb torch; do \\
        /fetch/bin/pip download --quiet --no-cache-dir --no-deps --require-hashes --dest {wheels} \\
            --requirement /lists/$list.txt || exit 1; done \\
    && rm -rf /fetch /lists && printf 'no-index = true\\nno-compile = true\\n' >>/etc/pip.conf
WORKDIR /
CMD ["/bin/sh", "-c", "mkdir -p /run/sshd /root/.ssh && echo $PUBLIC_KEY >/root/.ssh/authorized_keys && ssh-keygen -A && exec /usr/sbin/sshd -D -e"]
"""  # noqa: E501


def stock_image() -> str:
    """Name and tag of the image; builds it if there is none for these package lists. Raises NoDocker."""
    from tests.support.images import one_at_a_time

    check_docker()
    with one_at_a_time():
        base = base_image()
        files = {Path(name).name: (PROJECT / name).read_bytes() for name in LISTS}
        text = DOCKERFILE.format(base=base, system=system_packages(), wheels=WHEELS)
        inputs = b"|".join([text.encode(), *files.values()])
        reference = f"{STOCK}:{hashlib.sha256(inputs).hexdigest()[:12]}"
        if not exists(reference):
            with tempfile.TemporaryDirectory(prefix="sniperface-stock-") as folder:
                for name, content in {**files, "Dockerfile": text.encode()}.items():
                    Path(folder, name).write_bytes(content)
                docker("build", "--tag", reference, "--label", f"{LABEL}=yes", folder, builder="1")
        return reference


def system_packages() -> str:
    """The line of our Dockerfile that installs with apt, as it is there: BuildKit reuses the layer of our image."""
    ours = (PROJECT / "Dockerfile").read_text(encoding="utf-8")
    [found] = re.findall(r"^RUN apt-get (?:.*\\\n)*.*\n", ours, re.MULTILINE)
    return str(found)
