"""Log records of a test itself."""

import logging
import threading

import pytest


def own_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Those of this thread alone: a server that several tests share logs in threads of its own."""
    here = threading.get_ident()
    return [record for record in caplog.records if record.thread == here]
