"""Credentials in the code folder are refused by name before anything is recorded, paid for or sent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from deploy.errors import WrongUse
from deploy.workspace import code, leaks
from tests.deploy.conftest import Project, git

PEM, OPENSSH = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
PLAIN = serialization.NoEncryption()


def private_keys() -> dict[str, bytes]:
    """New real keys, in the formats of openssl and ssh-keygen."""
    curve = ec.generate_private_key(ec.SECP256R1())
    return {
        "openssh": ed25519.Ed25519PrivateKey.generate().private_bytes(PEM, OPENSSH, PLAIN),
        "pkcs8": curve.private_bytes(PEM, serialization.PrivateFormat.PKCS8, PLAIN),
        "sec1": curve.private_bytes(PEM, serialization.PrivateFormat.TraditionalOpenSSL, PLAIN),
        "encrypted": curve.private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        ),
    }


# In two parts, so that this file contains no credential.
TOKENS = {
    "an AWS access key": "AKIA" + "IOSFODNN7EXAMPLE",
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "a GitLab token": "glpat-" + "aB3_" * 5,
    "a Google API key": "AIza" + "aB3_-" * 7,
    "a Slack token": "xoxb-" + "1234-" * 5,
    "a Hugging Face token": "hf_" + "aB3" * 11 + "x",
    "an API key that begins with sk-": "sk-" + "proj-aB3_" * 5,
    "a RunPod API key": "rpa_" + "A1B2C3" * 7,
    "a W&B API key": "machine api.wandb.ai\n  login user\n  password " + "0123456789" * 4,
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one commit."""
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "tasks.py").write_text("print('hello')\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "tasks.py")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


@pytest.mark.parametrize("name", [".env", "sub/.env.local", ".netrc", "_netrc", "id_ed25519", "credentials",
                                  "credentials.json", "server.pem",
                                  ".envrc", ".pgpass", "kubeconfig", "a.p12", "a.pfx", "tls.key",
                                  "ID_RSA"])  # fmt: skip
def test_a_file_with_the_name_of_credentials_is_refused_and_can_be_allowed(
    tree: Path, tmp_path: Path, name: str
) -> None:
    (tree / name).parent.mkdir(exist_ok=True)
    (tree / name).write_text("x\n")
    with pytest.raises(WrongUse) as refused:
        code.prove(tree)
    assert refused.value.message.startswith(f"{name} has the name of a file with credentials")
    assert f"allow_files: [{name}]" in refused.value.message
    assert not (tmp_path / "machine").exists()
    assert code.check(tree, (name,), {})[0] == ()
    (tree / ".gitignore").write_text(f"/{name}\n")
    assert code.check(tree, (), {})[0] == ()


@pytest.mark.parametrize("form", ["openssh", "pkcs8", "sec1", "encrypted"])
def test_a_private_key_is_found_whatever_its_name(form: str) -> None:
    key = private_keys()[form]
    leak = leaks.judge("notes.txt", b"about\n" + key, {})
    if form == "encrypted":
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in key
    assert leak == leaks.Leak("notes.txt", "holds a private key")
    assert leaks.judge("notes.txt", key.replace(b"\n", b"\r\n"), {}) == leak


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_credential_that_powershell_wrote_is_found(encoding: str) -> None:
    """`echo $env:WANDB_API_KEY > key.txt` in Windows PowerShell writes UTF-16."""
    held = "WANDB_API_KEY: " + TOKENS["a RunPod API key"]
    assert leaks.judge("key.txt", held.encode(encoding), {}) == leaks.Leak("key.txt", "holds a RunPod API key")
    value = leaks.judge("key.txt", "x 0123456789abcdef0123 y".encode(encoding), {"MINE": "0123456789abcdef0123"})
    assert value == leaks.Leak("key.txt", "holds the value of MINE", certain=True)


def test_a_private_key_inside_json_is_found() -> None:
    """A service account's file has the key with its line ends escaped, under any name."""
    text = json.dumps({"type": "service_account", "private_key": private_keys()["pkcs8"].decode()})
    assert leaks.judge("project-1234.json", text.encode(), {}) == leaks.Leak("project-1234.json", "holds a private key")


@pytest.mark.parametrize("what", TOKENS)
def test_a_token_is_found_by_its_form(what: str) -> None:
    leak = leaks.judge(
        "notes.txt", f"key = '{TOKENS[what]}'\n".encode() if "\n" not in TOKENS[what] else TOKENS[what].encode(), {}
    )
    assert leak == leaks.Leak("notes.txt", f"holds {what}")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"risk-" + b"a" * 40,
        b"-----BEGIN OPENSSH PRIVATE KEY-----\\n...",
        b"import os\nos.environ['WANDB_API_KEY']\n",
    ],
)
def test_plain_text_is_not_taken_for_a_credential(content: bytes) -> None:
    assert leaks.judge("app/train.py", content, {}) is None
    assert leaks.judge(".env.example", content, {}) is None


def test_a_tracked_file_is_a_warning_but_a_value_of_this_computer_is_refused(tree: Path) -> None:
    """A repository may contain test keys on purpose, but never the value of a real variable."""
    (tree / "fixture.pem").write_text("x\n")
    git(tree, "add", "fixture.pem")
    assert code.check(tree, (), {})[0] == ("fixture.pem",)
    (tree / "tasks.py").write_text("token = 'planted-value-123'\n")
    with pytest.raises(WrongUse, match=r"tasks\.py holds the value of MY_TOKEN.*remove the value"):
        code.check(tree, (), {"MY_TOKEN": "planted-value-123"})


def test_untracked_files_are_named(tree: Path) -> None:
    (tree / "new.py").write_text("x\n")
    assert code.look(tree).untracked == ("new.py",)


def test_the_project_ignores_the_usual_names() -> None:
    """.gitignore lists the most common of the refused names, so these files are never uploaded or refused."""
    names = [
        ".env",
        "a/.env.local",
        ".netrc",
        "_netrc",
        "id_rsa",
        "id_ed25519",
        "credentials",
        "x.pem",
        "x.key",
        "x.p12",
    ]
    project = Path(code.__file__).parents[2]
    ignored = subprocess.run(["git", "check-ignore", *names], cwd=project, capture_output=True, text=True).stdout
    assert ignored.split() == names


def test_the_tree_of_this_project_is_clean() -> None:
    project = Path(code.__file__).parents[2]
    tracked = [name for name in git(project, "ls-files", "-z").split("\0") if name]
    assert len(tracked) > 300
    assert leaks.find(project, tracked, {}) == []


def test_a_refused_run_leaves_no_record(project: Project) -> None:
    """The refusal comes before the run is recorded, with --dry-run as in a real start."""
    git(project.path, "init", "--quiet")
    (project.path / ".env").write_text("x\n")
    (project.path / ".gitignore").write_text("")
    for words in (["train", "--dry-run"], ["train", "--detach"], ["deploy"]):
        assert "error: .env has the name" in project.invoke(*words, code=2).stderr
    assert not list((project.path / "runs").glob("*/run.json"))
