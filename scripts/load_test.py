"""Put load on a running server, and say what became of every request.

    python scripts/load_test.py --clients 32 --seconds 90 --mix short=60,long=10,list500=2
    python scripts/load_test.py --ramp 5:50 --seconds 60 --verify 64 --max-failed 0.01
    python scripts/load_test.py --rate 20 --texts FILE.jsonl --json run.json --html run.html

A closed loop (--clients) finds out what the server can do; an open loop (--rate, --ramp) what
its users would see, for they do not wait for each other. Latency counts from when a request was
due: a server that stalls cannot hide it by holding up the requests behind.

Kinds for --mix:
short       one text; --verify compares its vector with the quiet server's
long        one text of 2,000 words
list        50 texts
list500     500 short texts
huge        one text of --huge-tokens tokens, special ones included
body20      a body of 20 MB: one text, which the server cuts
body20list  a body of 20 MB: a list of 1,000 words a text
hangup      50 texts, by a client that closes the connection when it has sent them
malformed   bad JSON, wrong types, a body that breaks off; a 4xx is the right answer

Columns:
dense       answered with vectors
sparse      answered by the fallback, as the reply says
refused     429, 413, or 503 with Retry-After
rejected    a malformed request, as due
failed      no reply, any other status, a malformed reply, an answer missing or a wrong vector
hung up     by this client
Latency is that of dense and sparse replies and of requests that were not answered in time.

The exit code is 0, or 1 when a threshold (--max-failed, --min-dense, --max-p99) is not held, 2
when the run could not begin, 130 after Ctrl-C, which prints what there is.
"""

import sys
from pathlib import Path

# For `load`, however this file was started.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from load.command import main

if __name__ == "__main__":
    sys.exit(main(__doc__ or ""))
