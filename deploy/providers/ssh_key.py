"""The SSH key of this project: created once, kept beside the launcher's notes. The private key is never sent."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from pathlib import Path

from deploy.border.text_files import NotText, read_text
from deploy.errors import StepFailed, WrongUse, quoted
from deploy.pod.base import folder
from deploy.shell import LocalShell
from deploy.shell.connect import check_key
from deploy.specs.settings import Settings, key_file

COMMENT = "sniperface"


def project_key(settings: Settings) -> tuple[Path, str]:
    """Return the private key file and its public line: the key that the target names, else the project's own."""
    chosen = getattr(settings.target.options, "key", None)
    if chosen:
        path = key_file(settings, chosen)
        check_key(path)  # before a machine costs money
        return path, _public_line(path)
    path = settings.notes / "key"
    if not path.exists():
        _make(path)
    return path, _public_line(path)


def _make(path: Path) -> None:
    """Create an ed25519 key that only this user can read. Of two concurrent calls, both use the first key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    folder.remove(part)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
        file.flush()
        os.fsync(file.fileno())
    _for_this_user_only(part)
    try:
        os.link(part, path)  # unlike a rename, a link never replaces a key that is in use
    except FileExistsError:
        pass
    except OSError:  # the file system has no hard links
        if not path.exists():
            folder.replace(part, path)
    folder.remove(part)


def _for_this_user_only(path: Path) -> None:
    """Restrict a file to this user on Windows, where a file inherits the rights of its folder.

    ssh.exe refuses a key that others can read. Raises StepFailed.
    """
    if sys.platform == "win32":
        shell = LocalShell()
        system = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32")  # in Git Bash, whoami is that of Unix
        who = sid_of(shell.run([str(system / "whoami.exe"), "/user", "/fo", "csv", "/nh"], check=False).text)
        if who is None:
            raise StepFailed("whoami /user reports no user SID, so the SSH key cannot be made private")
        done = shell.run(
            [str(system / "icacls.exe"), str(path), "/inheritance:r", "/grant:r", f"*{who}:F"], check=False
        )
        if not done:
            raise StepFailed(f"the SSH key {path} cannot be made private by icacls", evidence=done.complaint)


def sid_of(text: str) -> str | None:
    """Return the security identifier in the output of `whoami /user`. Domain and Entra ID names may not resolve."""
    found = re.search(r'[\s,"](S-1-[0-9-]+)"?\s*$', text)
    return found[1] if found else None


def public_line(text: str) -> str:
    """Return the key without its comment: a CR or a quote there would break authorized_keys or a query.

    Raises WrongUse for a text that is no public key.
    """
    found = re.match(r"((?:ssh|ecdsa|sk)-[\w@.-]+)\s+([A-Za-z0-9+/]+=*)(?:\s|$)", text.strip())
    if not found:
        raise WrongUse("the public key of this project is not in OpenSSH format, such as: ssh-ed25519 AAAA…")
    return f"{found[1]} {found[2]}"


def _public_line(path: Path) -> str:
    """Read the public line from the .pub file beside the key, else derive it from the key.

    A key with a passphrase needs the .pub file. Raises WrongUse when neither works.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

    with contextlib.suppress(OSError, NotText):
        beside = read_text(path.with_name(f"{path.name}.pub")).strip()
        if beside:
            return beside
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise WrongUse(f"the key {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise WrongUse(
            f"the key {path} is not an OpenSSH private key without a passphrase, and has no {path.name}.pub beside it",
            next_command=f"ssh-keygen -y -f {quoted(path)} > {quoted(f'{path}.pub')}",
        ) from error
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return f"{public} {COMMENT}"
