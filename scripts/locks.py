"""Write locks/EXTRA.lock: what each extra of the image brings beside requirements.lock, by hash.

And a requirements.lock beside each requirements.in below locks/. `python -m scripts.locks` after a
change of requirements.txt and requirements.lock; pip-compile, of pip-tools, and uv have to be on
the PATH.
"""

import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
EXTRAS = ("parquet", "postgres", "qdrant", "tracing")
COMMENT = """\
# What the extra {extra} brings to the Docker image beside requirements.lock, by hash, for CPython
# 3.11 and 3.12 on x86-64 and aarch64. After a change of requirements.txt: python -m scripts.locks
"""
APART = """\
# What {folder}requirements.in asks for, by hash. After a change of it: python -m scripts.locks
"""
OPTIONS = (
    "--generate-hashes",
    "--strip-extras",
    "--allow-unsafe",
    "--no-annotate",
    "--no-header",
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--quiet",
)
# For any Python that Plimsoll runs with, on any processor.
OPTIONS_APART = (
    "--universal",
    "--python-version=3.11",
    "--generate-hashes",
    "--no-annotate",
    "--no-header",
    "--quiet",
)


def entries(text: str) -> dict[str, str]:
    """Each package's lines, its hashes among them, by its name."""
    found = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    return {entry.split("==")[0]: entry for entry in found}


def locked(extra: str) -> str:
    """What an extra and the project itself bring together."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lock"
        output.write_bytes(LOCK.read_bytes())  # whose hashes are taken over
        command = ["pip-compile", *OPTIONS, "--constraint=requirements.txt"]
        command += [f"--extra={extra}", f"--output-file={output}"]
        subprocess.run([*command, "pyproject.toml"], cwd=ROOT, check=True)
        return output.read_text(encoding="utf-8")


def lock_apart(wanted: Path) -> None:
    """Lock packages that are never installed beside Plimsoll, in versions of their own."""
    lock = wanted.with_suffix(".lock")
    command = ["uv", "pip", "compile", *OPTIONS_APART, f"--output-file={lock}", str(wanted)]
    subprocess.run(command, cwd=ROOT, check=True)
    comment = APART.format(folder=f"{wanted.parent.relative_to(ROOT)}/")
    lock.write_text(comment + lock.read_text(encoding="utf-8"), encoding="utf-8")


def main() -> None:
    """Write all of them."""
    for wanted in sorted((ROOT / "locks").glob("*/requirements.in")):
        lock_apart(wanted)
    base = entries(LOCK.read_text(encoding="utf-8"))
    for extra in EXTRAS:
        further = {
            name: entry for name, entry in entries(locked(extra)).items() if name not in base
        }
        text = COMMENT.format(extra=extra) + "".join(further.values())
        (ROOT / "locks" / f"{extra}.lock").write_text(text, encoding="utf-8")
        print(f"{extra}: {', '.join(further)}")


if __name__ == "__main__":
    main()
