"""How an embedding server is usually written, to show what a memory limit does to it.

`python -m tests.acceptance.naive_server SIDECAR_FOLDER ONNX_FILE POOLING LIMIT`: an ordinary ONNX
Runtime session that holds its weights, padded batches, a thread a request, and no idea of its own
memory. Answers POST /embed in Plimsoll's shape; prints its address as uvicorn does.
"""

import json
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from plimsoll.bench.comparison.naive import NaivePeer
from plimsoll.encoder.tokenizer import WordPieceTokenizer
from plimsoll.encoder.vocabulary import read_vocabulary
from plimsoll.sidecar.sidecar import Sidecar


def main() -> None:
    """Serve until a signal ends it, or the kernel does."""
    sidecar = Sidecar(Path(sys.argv[1]))
    tokenizer = WordPieceTokenizer(read_vocabulary(sidecar.header.metadata))
    sidecar.close()
    peer = NaivePeer(Path(sys.argv[2]), sys.argv[3])
    limit = int(sys.argv[4])

    def answer(body: bytes) -> dict[str, object]:
        given = json.loads(body)["input"]
        texts = [given] if isinstance(given, str) else given
        ids = [text.ids for text in tokenizer.tokenize(texts, limit)]
        vectors = peer.encode(ids)
        return {
            "kind": "dense",
            "embeddings": vectors.tolist(),
            "usage": {"tokens": sum(map(len, ids))},
        }

    async def embed(request: Request) -> JSONResponse:
        body = await request.body()
        try:
            return JSONResponse(await run_in_threadpool(answer, body))
        except (ValueError, TypeError, KeyError) as error:
            return JSONResponse({"error": str(error)}, 400)

    app = Starlette(routes=[Route("/embed", embed, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=0)


if __name__ == "__main__":
    main()
