"""Nothing about the use of this program goes anywhere."""

import os
import subprocess
import sys

import pytest

# Says whether ONNX Runtime is told to be silent at the moment when it is first looked for.
WATCHED = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print("ORT_DISABLE_TELEMETRY", os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
"""


@pytest.mark.parametrize("module", ["composition.application", "embedder", "cli.checks"])
def test_onnx_runtime_is_told_to_report_nothing_before_it_is_imported(module: str):
    """It asks once, while it is imported, and any module may be the first to do that."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}

    found = subprocess.run(
        [sys.executable, "-c", f"{WATCHED}\nimport plimsoll.{module}"],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )

    assert found.stdout.splitlines()[0] == "ORT_DISABLE_TELEMETRY 1"
