"""How `plimsoll migrate` shows what the server says: in tables."""

from collections.abc import Iterable

import click

from plimsoll.cli.migration_words import (
    Answer,
    agreement_told,
    bridge_told,
    duration,
    rollback_told,
    searches_read,
    space_name,
    trial_told,
)
from plimsoll.cli.tables import print_table
from plimsoll.sizes import rounded

STYLES = {
    "go": "green", "no_go": "red", "inconclusive": "yellow",
    "passed": "green", "failed": "red", "undecided": "yellow", "noted": "dim",
    "stopped": "red", "under_way": "yellow",
    "ready": "green", "cut_over": "green", "rolled_back": "yellow", "paused": "yellow",
}  # fmt: skip


def print_migrations(found: Iterable[Answer]) -> None:
    """One line a migration."""
    heads = ("migration", "collection", "state", "from", "to", "vectors", "left out", "verdict")
    rows = [
        (
            str(each["id"]),
            each["collection"],
            _styled(each["state"]),
            space_name(each["source"]),
            space_name(each["target"]),
            f"{each['vectors']} of {each['documents']}" if each["rollback"] != "none" else "",
            str(each["quarantined"]),
            _styled(each["verdict"]["decision"]) if each["verdict"] else "",
        )
        for each in found
    ]
    print_table(heads, rows, numbers=("vectors", "left out"))


def print_migration(migration: Answer) -> None:
    """Everything about one."""
    print_migrations([migration])
    if migration["failure"]:
        click.echo(f"\nstopped: {migration['failure']}")
    if migration["yielding"]:
        click.echo(f"\nyielding: {migration['yielding']}")
    click.echo(f"\nrollback: {rollback_told(migration)}")
    if migration["progressive"]:
        click.echo(f"\nsearches read {searches_read(migration)}")
    if migration["shadow"]:
        click.echo()
        print_shadow(migration["shadow"])
    if migration["watch"]:
        watch = migration["watch"]
        click.echo(
            f"\nwatched for {duration(watch['ends_in_s'])} more: {watch['unanswered']} of "
            f"{watch['searches']} searches had no answer{agreement_told(watch)}"
        )
        if watch["stays"]:
            click.echo(f"not taken back: {watch['stays']}")
    if migration["bridge"]:
        click.echo(f"\nbridge: {bridge_told(migration)}")
    if migration["verdict"]:
        click.echo()
        print_verdict(migration["verdict"])
    if migration["quarantine"]:
        click.echo()
        print_table(
            ("quarantined", "tries", "old vector", "why"),
            [
                (
                    left["id"],
                    str(left["attempts"]),
                    "yes" if left["has_old_vector"] else "no",
                    left["reason"],
                )
                for left in migration["quarantine"]
            ],
            numbers=("tries",),
        )
    if migration["hooks"]:
        click.echo()
        print_hook_answers(migration["hooks"])
    click.echo()
    print_table(
        ("at", "state", "who", "why"),
        [
            (change["at"], _styled(change["after"]), change["who"], change["why"])
            for change in migration["changes"]
        ],
    )


def shadow_figures(shadow: Answer) -> list[tuple[str, str]]:
    """What live searches say of the new version, each figure with its name."""
    means = (
        ("of the first ten in both, mean", "mean_overlap", "{:.1%}"),
        ("of the first ten in both, least", "least_overlap", "{:.1%}"),
        ("rank agreement, mean", "rank_agreement", "{:.3f}"),
        ("old version, mean", "old_mean_ms", "{:.1f} ms"),
        ("new version, mean", "new_mean_ms", "{:.1f} ms"),
    )
    failed = f"{shadow['failed']:,}"
    if shadow["last_failure"]:
        failed += f", the last with {shadow['last_failure']}"
    return [
        ("share", f"{shadow['share']:.4g}" if shadow["share"] else "ended"),
        ("compared", f"{shadow['compared']:,}"),
        *(
            (told, "–" if shadow[name] is None else form.format(shadow[name]))
            for told, name, form in means
        ),
        ("nothing found by the old, by the new", f"{shadow['old_empty']}, {shadow['new_empty']}"),
        ("failed in the new version", failed),
    ]


def print_shadow(shadow: Answer) -> None:
    """What live searches say of the new version."""
    print_table(("live searches", ""), shadow_figures(shadow))


def print_hook_answers(answers: Iterable[Answer]) -> None:
    """What became of hooks, one line each."""
    print_table(
        ("hook", "when", "answer", "seconds", "said"),
        [
            (
                answer["hook"],
                answer["moment"],
                _styled(answer["outcome"]),
                "" if answer["seconds"] is None else f"{answer['seconds']:.1f}",
                answer["reason"],
            )
            for answer in answers
        ],
        numbers=("seconds",),
    )


def print_hooks(found: Iterable[Answer]) -> None:
    """Every hook that may be named, one line each."""
    print_table(
        ("hook", "when", "always", "kind", "timeout", "what it does"),
        [
            (
                hook["name"],
                ", ".join(hook["when"]),
                "yes" if hook["always"] else "",
                hook["kind"],
                duration(hook["timeout_s"]),
                hook["description"],
            )
            for hook in found
        ],
        numbers=("timeout",),
    )


def print_verdict(verdict: Answer) -> None:
    """Each check, then what they add up to."""
    print_table(
        ("check", "outcome", "found"),
        [
            (check["name"], _styled(check["outcome"]), check["message"])
            for check in verdict["checks"]
        ],
    )
    click.echo("\nverdict: ", nl=False)
    decision = verdict["decision"]
    click.echo(click.style(decision, fg=STYLES[decision]))
    for told in (*verdict["reasons"], *verdict["warnings"]):
        click.echo(f"  {told}")


def print_doctor(report: Answer) -> None:
    """A collection's versions, then what would block and what is odd."""
    click.echo(
        f"{report['collection']}: {report['documents']} documents, {report['without_text']} "
        f"without text, {report['repeated_texts']} with the text of another\n"
    )
    heads = (
        "version of", "dims", "vectors", "active", "norms", "zero", "repeated", "not finite",
        "as embedded again",
    )  # fmt: skip
    print_table(
        heads,
        [
            (
                space_name(version),
                str(version["dimensions"]),
                str(version["vectors"]),
                "yes" if version["active"] else "no",
                _norms(version),
                str(version["zero"]),
                str(version["repeated"]),
                str(version["not_finite"]),
                f"{version['equal_again']} of {version['embedded_again']}",
            )
            for version in report["versions"]
        ],
        numbers=("dims", "vectors", "zero", "repeated", "not finite"),
    )
    for kind in ("blocking", "warnings"):
        for told in report[kind]:
            click.echo(f"\n{kind.removesuffix('s')}: {told}", nl=False)
    click.echo("" if report["blocking"] or report["warnings"] else "\nnothing stands in the way")


def print_plan(plan: Answer) -> None:
    """What a move would take."""
    rows = [
        ("from", space_name(plan["source"])),
        ("to", space_name(plan["target"])),
        ("documents", f"{plan['documents']}, {plan['counted']} of them counted"),
        ("tokens", f"{plan['tokens']:,} ± {plan['tokens_error']:,}"),
        ("time", f"{duration(plan['seconds'])} at {plan['tokens_per_s']:,.0f} tokens/s"),
        ("disk", rounded(plan["disk_bytes"])),
    ]
    print_table((plan["collection"], ""), rows)
    if plan["bridge"]:
        click.echo(f"\nbridge: {trial_told(plan['bridge'])}")
    for told in plan["warnings"]:
        click.echo(f"\nwarning: {told}")


def _norms(version: Answer) -> str:
    if version["least_norm"] is None:
        return ""
    return f"{version['least_norm']:.3g} to {version['greatest_norm']:.3g}"


def _styled(word: str) -> str | tuple[str, str]:
    return (word, STYLES[word]) if word in STYLES else word
