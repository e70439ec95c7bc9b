"""`plimsoll cache`: list, check and remove what lies in the cache folder."""

import sys
from typing import Any

import click

from app.cli_options import byte_bar, load, setting_options
from app.errors import CacheError
from app.gguf.cache import CacheEntry, evict, list_models, list_sidecars, verify


@click.group()
def cache() -> None:
    """List, check and remove what lies in the cache folder."""


@cache.command("list")
@setting_options("cache_dir")
def cache_list(**overrides: Any) -> None:
    """Say what lies in the cache folder: model files, and the sidecars made from them."""
    folder = load(overrides).settings.cache_dir
    click.echo(f"cache {folder}")
    for model in list_models(folder):
        made = "built" if model.built else "file"
        click.echo(f"{made:<24}  {model.n_bytes >> 20:>6} MiB  {model.path}")
    for entry in list_sidecars(folder):
        state = entry.fault or f"source {entry.source_state}"
        used = ", in use" if entry.in_use else ""
        source = entry.source_path or "unknown source"
        click.echo(f"{entry.key:<24}  {entry.n_bytes >> 20:>6} MiB  {source} ({state}{used})")


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
        click.echo("plimsoll: `plimsoll cache evict --stale` or their KEYs removes them", err=True)
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
    folder = load(overrides).settings.cache_dir
    result = evict(folder, keys or None, stale_only=stale)
    for entry in result.removed:
        click.echo(f"removed {entry.key}")
    for entry in result.in_use:
        click.echo(f"kept {entry.key}: in use by a live process", err=True)
    click.echo(f"{result.removed_bytes >> 20} MiB freed")
    if result.in_use:
        sys.exit(1)


def _faults(entry: CacheEntry) -> list[str]:
    if entry.fault:
        return [entry.fault]
    try:
        with byte_bar(entry.key) as progress:
            damages = verify(entry, progress)
    except CacheError as error:
        return [str(error)]
    return [
        f"{damage.tensor}, bytes {damage.start_byte} to {damage.stop_byte}" for damage in damages
    ]
