"""`plimsoll cache`: list, check and remove what lies in the cache folder."""

import sys
from typing import Any

import click

from plimsoll.cli.help import Group
from plimsoll.cli.options import load, setting_options
from plimsoll.cli.progress import progress_of
from plimsoll.cli.tables import print_table
from plimsoll.errors import CacheError
from plimsoll.sidecar.cache import CacheEntry, evict, list_models, list_sidecars, verify
from plimsoll.sizes import rounded


@click.group(cls=Group)
def cache() -> None:
    """List, check and remove what lies in the cache folder."""


@cache.command("list")
@setting_options("cache_dir")
def cache_list(**overrides: Any) -> None:
    """Say what lies in the cache folder: model files, and the sidecars made from them.

    `rm` takes the name of a model, `cache evict` the key of a sidecar.
    """
    from plimsoll.encoder.catalog import written_of

    folder = load(overrides).settings.cache_dir
    click.echo(f"cache {folder}")
    rows = [
        (
            written_of(model.path.name) or model.path.name,
            rounded(model.n_bytes),
            "model file",
            str(model.path),
        )
        for model in list_models(folder)
    ]
    for entry in list_sidecars(folder):
        state = entry.fault or f"source {entry.source_state}"
        used = ", in use" if entry.in_use else ""
        packed = f", {rounded(entry.packed_bytes)} packed" if entry.packed_bytes else ""
        source = str(entry.source_path or "unknown source")
        rows.append((entry.key, rounded(entry.n_bytes), f"{state}{packed}{used}", source))
    print_table(("name or key", "size", "state", "file, or made from"), rows, numbers=("size",))


@cache.command("verify")
@setting_options("cache_dir")
def cache_verify(**overrides: Any) -> None:
    """Compare every byte of every sidecar with its checksums; exit code 1 where one differs."""
    n_damaged = 0
    for entry in list_sidecars(load(overrides).settings.cache_dir):
        if entry.fault and (entry.in_use or not entry.is_stale):
            click.echo(f"{entry.key}  skipped: {entry.fault}")
            continue
        faults = _faults(entry)
        click.echo(f"{entry.key}  {'damaged: ' + '; '.join(faults) if faults else 'whole'}")
        n_damaged += bool(faults)
    if n_damaged:
        click.echo(
            "plimsoll: the next load makes it again; `plimsoll cache evict --stale` or "
            "their KEYs removes it",
            err=True,
        )
        sys.exit(1)


@cache.command("evict")
@click.argument("keys", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every sidecar.")
@click.option("--stale", is_flag=True, help="Those that no load would use any more.")
@setting_options("cache_dir")
def cache_evict(keys: tuple[str, ...], everything: bool, stale: bool, **overrides: Any) -> None:
    """Remove sidecars by KEY, all of them, or the stale ones; those in use stay."""
    if not keys and not everything and not stale:
        raise click.UsageError("name KEYs, or give --all or --stale")
    if keys and everything:
        raise click.UsageError("name KEYs or give --all, not both")
    folder = load(overrides).settings.cache_dir
    result = evict(folder, keys or None, stale_only=stale)
    for entry in result.removed:
        click.echo(f"removed {entry.key}")
    for entry in result.in_use:
        click.echo(f"kept {entry.key}: in use by a live process", err=True)
    click.echo(f"{rounded(result.removed_bytes)} freed")
    if result.in_use:
        sys.exit(1)


def _faults(entry: CacheEntry) -> list[str]:
    from plimsoll.encoder.quantization.codes_file import verify_codes

    if entry.fault:
        return [entry.fault]
    try:
        with progress_of(entry.key) as progress:
            damages = verify(entry, lambda done, total: progress(done, total, "check"))
            damages += verify_codes(entry.folder)
    except CacheError as error:
        return [str(error)]
    return [f"{damage.place}, {damage.fault}" for damage in damages]
