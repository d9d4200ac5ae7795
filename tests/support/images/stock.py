"""A stock image for the tests: an SSH server, Python, git and tmux as in RunPod's own images, and none of our code.

A folder with the package files replaces the package index; pip still checks their hashes. The image contains no
environment.
"""

from __future__ import annotations

import hashlib
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
RUN apt-get update \\
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \\
        git openssh-server python3 python3-venv tmux \\
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
COPY *.txt /lists/
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
        text = DOCKERFILE.format(base=base, wheels=WHEELS)
        inputs = b"|".join([text.encode(), *files.values()])
        reference = f"{STOCK}:{hashlib.sha256(inputs).hexdigest()[:12]}"
        if not exists(reference):
            with tempfile.TemporaryDirectory(prefix="sniperface-stock-") as folder:
                for name, content in {**files, "Dockerfile": text.encode()}.items():
                    Path(folder, name).write_bytes(content)
                docker("build", "--tag", reference, "--label", f"{LABEL}=yes", folder)
        return reference
