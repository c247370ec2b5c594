"""Virtual environments with one package in another version, and everything else from here.

The package, and what it needs and is not here in a fitting version, goes into the environment's own folder; behind that,
the folders of this environment are searched. So a version costs one download, and nothing else differs.
"""

from __future__ import annotations

import os
import re
import signal
import site
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bisect_tool.environments.snapshot import normalised
from bisect_tool.environments.variables import WITHHELD, is_secret, without_credentials
from bisect_tool.errors import BisectError

INSTALL_SECONDS = 1800


def released_versions(package: str) -> list[str]:
    """Versions that the user's pip can install here, oldest first.

    Raises:
        BisectError: there is no pip, no such package, or the index does not answer.
    """
    done = _pip("index", "versions", package, "--pre")
    found = re.search(r"^Available versions: (.+)$", done.stdout, re.MULTILINE)
    if done.returncode != 0 or found is None:
        raise BisectError(
            f"pip does not list the releases of {package}: {_last_line(done.stderr)}",
            hint="check the name and pip's configuration; or name the versions: 1.18.0,1.19.2,1.20.1",
        )
    return [version.strip() for version in reversed(found.group(1).split(","))]


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    try:
        return run_with_its_children([*command, *arguments], INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise BisectError(f"pip took longer than {INSTALL_SECONDS} s", hint="check the connection") from error


def run_with_its_children(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end. Where that is not waited for, what it has started ends with it: pip installs by another pip,
    which would go on writing into a folder that is being removed.

    Raises:
        subprocess.TimeoutExpired: it takes longer.
    """
    quiet: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, errors="replace", start_new_session=True, **quiet) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            with suppress(ProcessLookupError):
                if os.name == "nt":
                    process.kill()
                else:
                    os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
    return subprocess.CompletedProcess(list(command), process.returncode, out, err)


def _last_line(text: str) -> str:
    """What pip says last of an error, without credentials of an index."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.upper().startswith("ERROR")] or lines
    line = without_credentials(errors[-1] if errors else "it says nothing")[:300]
    return WITHHELD if is_secret(line) and "://" in line else line


def make_environment(folder: Path, package: str, also: Sequence[str] = ()) -> Path:
    """Makes an environment and installs into it; returns its interpreter.

    Args:
        folder: of the environment; made.
        package: with its version, ``numpy==2.0.0``; goes into this environment even if it is here in that version.
        also: other requirements, and what they and the package need, go there where they are not met here.

    Raises:
        BisectError: pip cannot install that.
    """
    venv.EnvBuilder(with_pip=False, clear=True, symlinks=os.name != "nt").create(folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    own = Path(sysconfig.get_path("purelib", "nt" if os.name == "nt" else "posix_prefix", vars=_bases(folder)))
    own.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in outer_folders())
    (own / "zz_outer_environment.pth").write_text(lines, encoding="utf-8")
    for arguments in (["--no-deps", "--ignore-installed", package], [package, *also]):
        done = _pip("--python", str(python), "install", "--quiet", *arguments)
        if done.returncode != 0:
            raise BisectError(f"pip cannot install {' '.join([package, *also])}: {_last_line(done.stderr)}")
    return python


def outer_folders() -> list[str]:
    """Where the packages of this environment lie."""
    return list(dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *_user_site()]))


def _bases(folder: Path) -> dict[str, str]:
    return {name: str(folder) for name in ("base", "platbase", "installed_base", "installed_platbase")}


def _user_site() -> list[str]:
    return [site.getusersitepackages()] if site.ENABLE_USER_SITE else []


def installed_version(python: Path, package: str) -> str:
    """The version that the environment's interpreter finds first; empty if it finds none."""
    code = (
        "import importlib.metadata as m, sys\ntry: print(m.version(sys.argv[1]))\nexcept m.PackageNotFoundError: pass\n"
    )
    done = subprocess.run(
        [str(python), "-c", code, normalised(package)], capture_output=True, text=True, check=False, timeout=120
    )
    return done.stdout.strip()
