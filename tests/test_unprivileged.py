"""It needs no privilege and no disk: as nobody, without a home, in a folder that it cannot write to."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Backend, Client, Proxy, answer_all

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
NOBODY = pwd.getpwnam("nobody")

# No group, no capability, no way to get one; and a write of one byte to a file would be an error.
AS_NOBODY = [
    *("setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all", "--bounding-set=-all", "prlimit", "--fsize=0", "--core=0"),
]

# An interpreter in root's home is out of nobody's reach. In a mount namespace of its own such a home is replaced by an empty
# one that holds the interpreter alone. Arguments: a folder for mounts, homes, "--", what is needed, "--", the command.
OPENED = """
set -e
keep=$1; shift
homes=; while [ "$1" != -- ]; do homes="$homes $1"; shift; done; shift
needed=; while [ "$1" != -- ]; do needed="$needed $1"; shift; done; shift
for path in $needed; do mkdir -p "$keep$path"; mount --bind "$path" "$keep$path"; done
for home in $homes; do mount -t tmpfs -o mode=755 tmpfs "$home"; done
for path in $needed; do mkdir -p "$path"; mount --bind "$keep$path" "$path"; done
exec "$@"
"""


def closed_to_nobody(path: Path) -> Path | None:
    """The first folder on the way to `path` that others may not enter."""
    return next((at for at in [*reversed(path.parents), path] if not at.stat().st_mode & 0o001), None)


def words_as_nobody(keep: Path) -> list[str]:
    """Words before a command that run it as nobody."""
    needed = [Path(at).resolve() for at in {sys.prefix, sys.base_prefix}]
    closed = {str(path): str(home) for path in needed if (home := closed_to_nobody(path))}
    if not closed:
        return AS_NOBODY
    opened = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        OPENED,
        "sh",
        str(keep),
        *sorted(set(closed.values())),
        "--",
        *closed,
        "--",
    ]
    return [*opened, *AS_NOBODY]


def why_not(words: list[str]) -> str | None:
    """Why this machine cannot run the proxy as nobody."""
    if os.geteuid() != 0:
        return "only root can become nobody"
    for tool in ("setpriv", "prlimit", "unshare"):
        if not shutil.which(tool):
            return f"there is no {tool} (apt: util-linux)"
    tried = subprocess.run(
        [*words, sys.executable, "-c", "import llmpipe.server"],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return None if tried.returncode == 0 else f"nobody cannot run what is installed here: {tried.stderr.strip()[-200:]}"


@pytest.fixture(scope="module")
def as_nobody(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words before a command that run it as nobody."""
    words = words_as_nobody(tmp_path_factory.mktemp("mounts"))
    reason = why_not(words)
    if reason:
        pytest.skip(reason)
    return words


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may enter and read, and not write to."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    folder.chmod(0o555)
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(parent.stat().st_mode | 0o011)
    return folder


def regular_files_open_for_writing(pid: int) -> list[str]:
    """Those that it opened itself, so none of the first three."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if int(link.name) < 3:
            continue
        # A descriptor of the listing may have been closed since: the admin connection just answered is closed after its answer.
        with contextlib.suppress(FileNotFoundError):
            info = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().splitlines()
            flags = int(next(x for x in info if x.startswith("flags:"))[6:], 8)
            if link.is_file() and flags & os.O_ACCMODE != os.O_RDONLY:
                found.append(os.readlink(link))
    return found


def test_it_serves_reloads_and_drains(as_nobody: list[str], folder: Path) -> None:
    environment = {"HOME": "/nonexistent", "TMPDIR": str(folder), "XDG_CACHE_HOME": "/nonexistent"}
    with Backend(answer_all) as backend:
        with Proxy(backend.url, prefix=as_nobody, cwd=str(folder), env=environment) as proxy:
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{proxy.pid}/status").read_text().splitlines())
            assert status["Uid"].split() == [str(NOBODY.pw_uid)] * 4
            assert status["NoNewPrivs"] == "1"
            assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
            with Client(proxy) as client:
                for _ in range(10):
                    assert client.request(GET).status == 200
            assert len(proxy.access(10)) == 10
            assert proxy.admin("/readyz")[0] == 200
            assert proxy.metric("llmpipe_accepted_total") == 1
            assert regular_files_open_for_writing(proxy.pid) == []
    assert os.listdir(folder) == []
