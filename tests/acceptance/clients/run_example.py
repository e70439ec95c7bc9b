"""Run an example of docs/clients.md, in the environment of the clients and not of Plimsoll.

Standard input is JSON: `code`, and `texts` that it finds under that name. Standard output gets, as
JSON too, the `vectors` that it leaves, null where there are none, or the error that it ends in.
"""

import json
import sys
import traceback


def main() -> None:
    """Run it."""
    given = json.load(sys.stdin)
    names = {"texts": given["texts"]}
    try:
        exec(compile(given["code"], "docs/clients.md", "exec"), names)
        vectors = names.get("vectors")
        rows = None if vectors is None else [[float(value) for value in row] for row in vectors]
        found = {"vectors": rows}
    except Exception as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__module__}.{type(error).__name__}: {error}"}
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
