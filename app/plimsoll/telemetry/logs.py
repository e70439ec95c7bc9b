"""Log lines: readable on a terminal, JSON for machines; never a text or a key.

Each line that is written while a request is served carries the request's id. A line may bring
fields of its own, `extra={"fields": {…}}`: they stand in the JSON beside what the message says.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime

from plimsoll.telemetry.current_request import current_request

# What a terminal obeys or what begins a line: a path or a message must not forge another line.
CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Of a request's id in a text line, which tells requests of an hour apart; JSON has all of it.
ID_CHARACTERS, MOST_IDS = 8, 3


class JSONFormatter(logging.Formatter):
    """One JSON object a line; a traceback goes into a field of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("request_id", "trace_id"):
            if getattr(record, name, None) is not None:
                line[name] = getattr(record, name)
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Time, level, message, and the beginning of the request's id; a traceback goes below."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Render everything but the traceback: one line."""
        line = CONTROL_CHARACTERS.sub(_escape, super().formatMessage(record).rstrip())
        request_id = getattr(record, "request_id", None)
        return line if request_id is None else f"{line} [{_short(request_id)}]"


def configure(level: str, style: str) -> None:
    """Send every log line to standard error; `style` is auto, text or json."""
    handler = logging.StreamHandler()
    if style == "json" or (style == "auto" and not sys.stderr.isatty()):
        handler.setFormatter(JSONFormatter())
    else:
        handler.setFormatter(TextFormatter())
    handler.addFilter(name_request)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # HTTP clients repeat our own lines, request by request; gguf tells what it writes as it writes.
    for name in ("httpx", "httpx2", "urllib3", "gguf"):
        logging.getLogger(name).setLevel(logging.WARNING)


def name_request(record: logging.LogRecord) -> bool:
    """Write the request that is being served into a record: a filter that lets everything pass."""
    request = current_request()
    record.request_id = request.id if request else None
    record.trace_id = request.trace_id if request else None
    return True


def _short(request_ids: str) -> str:
    """As much of a request's id, or of the ids of several, as a terminal's line has room for."""
    ids = request_ids.split(",")
    rest = f" and {len(ids) - MOST_IDS} more" if len(ids) > MOST_IDS else ""
    return ", ".join(one[:ID_CHARACTERS] for one in ids[:MOST_IDS]) + rest


def _escape(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]
