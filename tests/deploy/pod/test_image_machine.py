"""Our image in real containers with a real sshd: environment of each session, keys, bad starts, shutdown."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.support.training import PROJECT, TINY
from tests.deploy.conftest import wait_until
from tests.support.images.container import BAD_START, Machine, new_key, started
from tests.support.images.engine import docker

pytestmark = pytest.mark.slow

HOSTILE = {
    "lower_case": "a \"quoted\" value, 'twice', $HOME `id` \\ !",
    "NEW_LINE": "two\nlines\r\nand a half\n",
    "EMPTY": "",
    "dotted.name-%": "=1=",
    "UTF8": "größe ✓",
}


@pytest.fixture(scope="module")
def machine(our_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    key = new_key(folder)
    public = f"# a comment\r\n\r\nnot a key at all\r\n{key.with_suffix('.pub').read_text().strip()}\r\n"
    with started(our_image, folder / "made", {**HOSTILE, "PUBLIC_KEY": public}) as made:
        made.key = key
        yield made.until_it_answers()


def variables(dump: bytes) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in dump.decode().split("\0") if "=" in entry)


def test_the_selftest_finds_everything_well(our_image: str) -> None:
    told = docker("run", "--rm", "--shm-size", "2g", our_image, "selftest").splitlines()
    assert [line.split()[:2] for line in told] == [
        ["ok", name] for name in ("sshd", "programs", "torch", "faiss", "write", "/dev/shm")
    ]


def test_the_selftest_fails_where_something_is_broken(our_image: str) -> None:
    argv = ["docker", "run", "--rm", "--read-only", "--tmpfs", "/tmp", "--tmpfs", "/run", our_image, "selftest"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "broken  write     /workspace cannot be written: Read-only file system" in done.stdout
    assert "note    /dev/shm  64 MiB is too little: docker run --shm-size 2g" in done.stdout


def test_a_compiled_network_trains_in_the_image(our_image: str) -> None:
    """torch.compile generates C++ on a CPU, so the image needs a compiler and Python's headers."""
    # Most of the time is the compiler's: MoCo has a second network to compile.
    least = ["recipe=supervised", "backbone.layers=[1]", "backbone.image_size=16", "train.epochs=1"]
    train = ["python", "-m", "app.train", *TINY, "train.compile=true", *least, "run.dir=/tmp/run"]
    words = " ".join(map(shlex.quote, [*train, "data.binary_cache_path=/tmp/faces/images.npy"]))
    make = "python -m app.prepare source=synthetic out=/tmp/faces/images.npy identities=12 per_identity=8"
    mounted = ["--volume", f"{PROJECT}:/code:ro", "--workdir", "/code", "--env", "PYTHONDONTWRITEBYTECODE=1"]
    # As the launcher tells the ranks of a computer: more threads would wait in loops. No other process compiles.
    threads = ["--env", "OMP_NUM_THREADS=1", "--env", "TORCHINDUCTOR_COMPILE_THREADS=1"]
    told = docker("run", "--rm", "--shm-size", "1g", *mounted, *threads, our_image, "sh", "-c", f"{make} && {words}")
    assert "in fp32 on cpu" in told
    assert "checkpoint epoch_000.pt" in told


def test_any_other_command_runs_instead(our_image: str) -> None:
    assert docker("run", "--rm", our_image, "python", "-c", "import torch; print(torch.__version__)") == "2.13.0+cpu"
    done = subprocess.run(["docker", "run", "--rm", our_image, "no-such"], capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert done.stdout == (
        "sniperface cannot run no-such: No such file or directory; give selftest, or any program of the image\n"
    )


def test_no_host_key_is_in_the_image(our_image: str) -> None:
    look = "find / -xdev -name 'ssh_host_*' -o -xdev -name authorized_keys | grep . || echo none"
    assert docker("run", "--rm", "--entrypoint", "sh", our_image, "-c", look) == "none"


def test_a_command_sees_the_containers_environment(machine: Machine) -> None:
    seen = variables(machine.ssh("env -0"))
    assert {name: seen.get(name) for name in HOSTILE} == HOSTILE
    assert seen["SNIPERFACE_PYTHON"] == "/opt/sniperface/bin/python"
    assert seen["PATH"].startswith("/opt/sniperface/bin:")
    assert (seen["HOME"], seen["SHELL"]) == ("/root", "/bin/bash")
    assert "SSH_CONNECTION" in seen


@pytest.mark.parametrize("shell", ["bash -lc", "bash -ic"])
def test_so_do_other_shells_whose_startup_files_set_path_anew(machine: Machine, shell: str) -> None:
    seen = variables(machine.ssh(f"{shell} 'env -0' 2>/dev/null"))
    assert {name: seen.get(name) for name in HOSTILE} == HOSTILE
    assert seen["PATH"].startswith("/opt/sniperface/bin:")


def test_so_does_a_terminal(machine: Machine) -> None:
    """A terminal's shell is a login bash, which reads the startup files."""
    typed = b"env -0 > /tmp/terminal; shopt login_shell > /tmp/kind; which python >> /tmp/kind; exit\n"
    machine.ssh("", "-tt", stdin=typed)
    seen = variables(machine.ssh("cat /tmp/terminal"))
    assert {name: seen.get(name) for name in HOSTILE} == HOSTILE
    assert machine.ssh("cat /tmp/kind").split() == [b"login_shell", b"on", b"/opt/sniperface/bin/python"]


def test_so_does_tmux_in_its_command_and_in_its_terminals(machine: Machine) -> None:
    machine.ssh("tmux -L test new-session -d -s job 'env -0 > /tmp/job.part; mv /tmp/job.part /tmp/job; sleep 60'")
    machine.ssh("tmux -L test new-window -t job")
    machine.ssh("tmux -L test send-keys -t job 'env -0 > /tmp/w.part; mv /tmp/w.part /tmp/window' Enter")
    for file in ("job", "window"):
        wait_until(lambda file=file: machine.ssh(f"ls /tmp/{file} 2>/dev/null || true"))
        seen = variables(machine.ssh(f"cat /tmp/{file}"))
        assert {name: seen.get(name) for name in HOSTILE} == HOSTILE, file
        assert seen["PATH"].startswith("/opt/sniperface/bin:"), file
    machine.ssh("tmux -L test kill-server")


def test_files_go_by_sftp_too(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"by sftp")
    argv = [*machine.argv("sftp")[:-1], "-b", "-", machine.argv()[-1]]
    subprocess.run(argv, input=f"put {tmp_path}/here /workspace/there\n".encode(), check=True, capture_output=True)
    assert machine.ssh("cat /workspace/there") == b"by sftp"


def test_secrets_are_for_root_alone(machine: Machine) -> None:
    modes = machine.ssh("stat -c '%a %U' /run/sniperface /run/sniperface/environment /etc/ssh/sniperface/*_keys")
    assert modes.decode().splitlines() == ["700 root", "600 root", "600 root"]
    processes = machine.ssh("cat /proc/*/cmdline").decode(errors="replace")
    assert "quoted" not in processes


def test_what_is_no_key_is_said_and_left_out(machine: Machine) -> None:
    assert "sniperface PUBLIC_KEY: entry 2 is not a public key, such as ssh-ed25519" in machine.log()
    assert "not a key at all" not in machine.log()
    assert len(machine.ssh("cat /etc/ssh/sniperface/authorized_keys").splitlines()) == 1


def test_only_a_key_logs_in(machine: Machine, tmp_path: Path) -> None:
    password = ["-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password,keyboard-interactive"]
    done = subprocess.run([*machine.argv("ssh", *password), "true"], capture_output=True, text=True, check=False)
    assert "Permission denied (publickey)" in done.stderr
    other = Machine(machine.id, new_key(tmp_path), machine.known_hosts)
    done = subprocess.run([*other.argv(), "true"], capture_output=True, text=True, check=False)
    assert "Permission denied (publickey)" in done.stderr


def test_orphans_are_collected_and_sshd_is_started_again(machine: Machine) -> None:
    machine.ssh("for each in 1 2 3; do (sh -c 'sleep 0.1 &'); done")
    states = "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true"
    wait_until(lambda: machine.ssh(states).strip() == b"0")
    machine.ssh("kill $(pgrep -o -x sshd) 2>/dev/null || kill $(cat /run/sshd.pid)")
    wait_until(lambda: "sniperface ready: sshd started (2)" in machine.log())
    wait_until(lambda: subprocess.run([*machine.argv(), "true"], capture_output=True).returncode == 0)


def test_bytes_that_are_no_text_arrive_as_they_are(our_image: str, tmp_path: Path) -> None:
    boot = "exec env BYTES=$'\\xff\\xfe \\x01' /usr/bin/python3 -I -u /usr/local/lib/sniperface"
    with started(our_image, tmp_path, None, "--entrypoint", "bash", command=("-c", boot)) as made:
        made.until_it_answers()
        assert b"\0BYTES=\xff\xfe \x01\0" in b"\0" + made.ssh("env -0")


@pytest.mark.parametrize(
    ("public_key", "cause"),
    [
        ("", "PUBLIC_KEY is not set: give the container PUBLIC_KEY='ssh-ed25519 AAAA... me@laptop'"),
        ("ssh-ed25519 AAAAbroken me", "PUBLIC_KEY holds no public key: give the container PUBLIC_KEY='ssh-ed25519"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n", "PUBLIC_KEY holds a private key; give the .pub file"),
    ],
)
def test_a_bad_start_is_said_and_the_container_stays(
    our_image: str, tmp_path: Path, public_key: str, cause: str
) -> None:
    with started(our_image, tmp_path, {"PUBLIC_KEY": public_key}) as made:
        wait_until(lambda: "this container keeps running" in made.log())
        assert f"{BAD_START}{cause}" in made.log()
        assert "c2VjcmV0" not in made.log()
        assert made.is_running()
        docker("stop", "--time", "20", made.id)  # SIGTERM still ends it
        assert docker("inspect", "--format", "{{.State.ExitCode}}", made.id) == "0"


def test_a_restart_keeps_the_host_key(our_image: str, tmp_path: Path) -> None:
    with started(our_image, tmp_path) as made:
        made.until_it_answers()
        docker("restart", made.id)
        made.until_it_answers()  # which accepts one key only
        assert made.ssh("echo there") == b"there\n"


def test_the_end_waits_for_a_supervisor_and_its_checkpoint(our_image: str, tmp_path: Path) -> None:
    """SIGTERM goes to the supervisor alone. After its end, it goes to the rest: jobs, and tmux.

    tmux must not count as a supervisor, although its command line names one.
    """
    supervisor = """
import signal, sys, time
def end(*_):
    time.sleep(1)
    open("/workspace/order", "a").write("checkpoint\\n")
    sys.exit()
signal.signal(signal.SIGTERM, end)
open("/workspace/up", "w")
while True:
    time.sleep(0.1)
"""
    job = "trap 'echo job >> /workspace/order; exit' TERM; touch /workspace/jobup; while :; do sleep 0.1; done"
    with started(our_image, tmp_path) as made:
        made.until_it_answers()
        made.ssh("mkdir -p /workspace/deploy/pod; cat > /workspace/deploy/pod/supervisor.py", stdin=supervisor.encode())
        made.ssh("cat > /workspace/job", stdin=job.encode())
        made.ssh("cd /workspace; tmux new-session -d -s one 'python -m deploy.pod.supervisor'")
        made.ssh("setsid --fork bash /workspace/job < /dev/null > /dev/null 2>&1")
        wait_until(lambda: {b"up", b"jobup"} <= set(made.ssh("ls /workspace").split()))
        docker("stop", "--time", "30", made.id)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", made.id) == "0"
        docker("start", made.id)
        assert made.until_it_answers().ssh("cat /workspace/order") == b"checkpoint\njob\n"
