"""A hook after a cut-over, as an operator may have one: do known queries still find the known?

Called as `python smoke_hook.py URL COLLECTION FILE`; FILE has ids by query, as JSON. Its last line
on standard error is the reason of its no.
"""

import json
import sys
import urllib.request
from pathlib import Path

LEAST_RATIO = 0.8


def found(url: str, collection: str, query: str, most: int) -> set[str]:
    """Ids that a search by meaning finds."""
    request = urllib.request.Request(
        f"{url}/collections/{collection}/search",
        json.dumps({"query": query, "top_k": most, "mode": "dense"}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return {document["id"] for document in json.load(answer)["results"]}


def main(url: str, collection: str, file: str) -> int:
    """Return the exit code."""
    expected: dict[str, list[str]] = json.loads(Path(file).read_text())
    n_found = sum(
        len(found(url, collection, query, len(ids)) & {*ids}) for query, ids in expected.items()
    )
    ratio = n_found / sum(map(len, expected.values()))
    if ratio >= LEAST_RATIO:
        return 0
    print(f"of what known queries found before, {ratio:.0%} is found now", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
