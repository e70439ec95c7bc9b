"""Send requests with wrong keys to a server at a steady rate: `python -m … URL PER_S SECONDS`.

A process of its own, so that the time it takes is not that of a client which is measured beside it.
Each request is another connection and another key, and has a body, as a guesser's would.
"""

import asyncio
import sys
from urllib.parse import urlsplit

BODY = b'{"input": "a ship"}'
TIMEOUT_S = 10.0


async def send(host: str, port: int, number: int) -> int:
    """One request; returns the status of its answer."""
    head = (
        f"POST /embed HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer wrong-key-{number:012}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    )
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(head.encode() + BODY)
            answer = await reader.read()  # the server closes after it
        finally:
            writer.close()
    return int(answer.split(maxsplit=2)[1])


async def flood(url: str, per_s: float, seconds: float) -> dict[int, int]:
    """Requests in an open loop, whatever becomes of each; how many answers there were by status."""
    parts, loop = urlsplit(url), asyncio.get_running_loop()
    began_s, tasks = loop.time(), []
    for number in range(round(per_s * seconds)):
        await asyncio.sleep(began_s + number / per_s - loop.time())
        task = send(str(parts.hostname), int(parts.port or 80), number)
        tasks.append(asyncio.create_task(task))
    statuses = await asyncio.gather(*tasks)
    return {status: statuses.count(status) for status in sorted(set(statuses))}


if __name__ == "__main__":
    print(asyncio.run(flood(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))))
