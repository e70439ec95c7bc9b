"""Job files: what they may name, and what is the operator's alone."""

from pathlib import Path

import pytest

from plimsoll.cli.job_file import JobFileError, MigrationJob, read_job

GOOD = 'collection = "ships"\nmodel = "new"\n'


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return tmp_path / "job.toml"


def test_a_job_names_what_is_there(job: Path):
    queries = job.with_name("q.jsonl")
    queries.touch()
    job.write_text(GOOD + 'dimensions = 64\nqueries = "q.jsonl"\nhooks = ["notify"]', "utf-8")
    assert read_job(job) == MigrationJob("ships", "new", ["notify"], 64, queries, file=job)
    job.write_text(GOOD + "progressive = true", "utf-8")
    assert read_job(job) == MigrationJob("ships", "new", [], file=job, progressive=True)
    job.write_text(GOOD + 'bridge = "gated"', "utf-8")
    assert read_job(job) == MigrationJob("ships", "new", [], bridge="gated", file=job)


@pytest.mark.parametrize(
    "line",
    [
        'command = "rm -r /"',
        'webhook = "https://example.org"',
        'postgres_url = "x"',
        'dsn = "host=example.org"',
        'api_key = "x"',
        'hooks = [{command = ["x"]}]',
        '[hooks.mine]\ncommand = ["x"]',
        'hooks = ["https://example.org/hook"]',
    ],
)
def test_a_job_defines_nothing_that_is_the_operators(job: Path, line: str):
    """Who may change a file in git may not run a command on the server by that."""
    job.write_text(GOOD + line, encoding="utf-8")
    with pytest.raises(JobFileError) as refused:
        read_job(job)
    assert "operator's configuration" in refused.value.message


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (GOOD + 'modle = "x"', "modle is no key; did you mean model?"),
        (GOOD + "zebra = 1", "zebra is no key; there are collection"),
        ('model = "new"', "collection is missing"),
        (GOOD + "dimensions = true", "dimensions is a whole number"),
        (GOOD + "progressive = 1", "progressive is true or false"),
        (GOOD + 'hooks = "notify"', "hooks is a list of names"),
        (GOOD + "hooks = [1]", "hooks is a list of names"),
        (GOOD + 'bridge = "golden"', "bridge is one of none, gated and forced"),
        (GOOD + "bridge = true", "bridge is one of none, gated and forced"),
        (GOOD + 'queries = "none.jsonl"', "there is no file"),
        (GOOD + f'queries = "{"q" * 5000}"', "there is no file"),
        ("collection =", "is no TOML"),
        ("collection = " + "[" * 3000, "is no TOML"),
        (GOOD + "dimensions = " + "9" * 5000, "is no TOML"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(job: Path, content: str, why: str):
    job.write_text(content, encoding="utf-8")
    with pytest.raises(JobFileError) as refused:
        read_job(job)
    assert why in refused.value.message
