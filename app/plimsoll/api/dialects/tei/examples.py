"""Examples of bodies for TEI's routes, which work as they are."""

from fastapi.openapi.models import Example

_TEXTS = ["A mark on a hull", "How deep may a ship be loaded?"]
_QUESTION = "How deep may a ship be loaded?"

EMBED: dict[str, Example] = {
    "one": {"summary": "One text", "value": {"inputs": "A mark on a hull"}},
    "query": {
        "summary": "Texts with the prefix of queries, cut at their beginning",
        "value": {"inputs": _TEXTS, "prompt_name": "query", "truncation_direction": "Left"},
    },
}
EMBED_ALL: dict[str, Example] = {
    "one": {"summary": "One text", "value": {"inputs": "A mark on a hull"}},
}
EMBED_SPARSE: dict[str, Example] = {
    "documents": {"summary": "Documents", "value": {"inputs": _TEXTS}},
    "query": {"summary": "A query", "value": {"inputs": _QUESTION, "prompt_name": "query"}},
}
OPENAI: dict[str, Example] = {
    "base64": {
        "summary": "One text, as OpenAI's own clients ask for it",
        "value": {"input": "A mark on a hull", "encoding_format": "base64"},
    },
}
RERANK: dict[str, Example] = {
    "texts": {
        "summary": "Two texts for a query",
        "value": {"query": _QUESTION, "texts": ["The price of tea", "A load line"]},
    },
}
SIMILARITY: dict[str, Example] = {
    "sentences": {
        "summary": "Two sentences beside a third",
        "value": {"inputs": {"source_sentence": _QUESTION, "sentences": _TEXTS}},
    },
}
TOKENIZE: dict[str, Example] = {
    "one": {"summary": "One text", "value": {"inputs": "A mark on a hull"}},
}
DECODE: dict[str, Example] = {
    "one": {"summary": "Ids of one text", "value": {"ids": [101, 102]}},
}
