"""Run an example of docs/clients.md, in the environment of the clients and not of Plimsoll.

Standard input is JSON: `code`, and `texts` that it finds under that name. Standard output gets the
`vectors` that it leaves, or the error that it ends in, as JSON too.
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
        rows = [[float(value) for value in vector] for vector in names["vectors"]]
        found = {"vectors": rows}
    except Exception as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__module__}.{type(error).__name__}: {error}"}
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
