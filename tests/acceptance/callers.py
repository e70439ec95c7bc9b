"""A crowd of OpenAI's clients with lists, and a client that asks one word again and again."""

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import httpx
import openai

N_TEXTS = 50
WORDS = ("ship", "hull", "mark", "deck", "load", "keel", "cargo", "port", "tide", "rope", "sail")
# Longer than any crowd takes; nothing is measured by it.
CLIENT_TIMEOUT_S = 600.0


def distinct_texts(caller: int, n_words: int) -> list[str]:
    """Texts that no other caller has: equal ones would share a row."""
    chance = random.Random(caller)
    return [
        f"{caller} {number} " + " ".join(chance.choices(WORDS, k=n_words))
        for number in range(N_TEXTS)
    ]


class Crowd:
    """Callers that each send one list, all at once, and retry as their library does by default."""

    def __init__(self, url: str, n_callers: int, n_words: int) -> None:
        self.statuses: Counter[int] = Counter()  # of every attempt
        self.told_s: list[int] = []
        self.failures: list[Exception] = []
        self.seconds = 0.0
        self.n_answered = 0
        self._lists = [distinct_texts(caller, n_words) for caller in range(n_callers)]
        self._clients = [self._client(url) for _ in range(n_callers)]

    def run(self) -> None:
        """Return when each has its answer or has given up."""
        began_s = perf_counter()
        with ThreadPoolExecutor(len(self._lists)) as callers:
            self.n_answered = sum(callers.map(self._call, self._clients, self._lists))
        self.seconds = perf_counter() - began_s

    def _client(self, url: str) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(event_hooks={"response": [self._note]})
        return openai.OpenAI(
            base_url=f"{url}/v1", api_key="none", timeout=CLIENT_TIMEOUT_S, http_client=http
        )

    def _call(self, client: openai.OpenAI, texts: list[str]) -> bool:
        with client:
            try:
                reply = client.embeddings.create(input=texts, model="builtin")
            except openai.OpenAIError as error:
                self.failures.append(error)
                return False
        return len(reply.data) == len(texts)

    def _note(self, response: httpx.Response) -> None:
        self.statuses[response.status_code] += 1
        if response.status_code == 429:
            self.told_s.append(int(response.headers["retry-after"]))


class Asking:
    """A client that asks for one word at a time, for as long as the block lasts."""

    def __init__(self, url: str, pause_s: float = 0.1) -> None:
        self.seconds: list[float] = []
        self.refused: list[str] = []
        self._url = url
        self._pause_s = pause_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(timeout=CLIENT_TIMEOUT_S) as client:
            while not self._stopped.wait(self._pause_s):
                began_s = perf_counter()
                reply = client.post(f"{self._url}/embed", json={"input": WORDS[0]})
                self.seconds.append(perf_counter() - began_s)
                if reply.status_code != 200:
                    self.refused.append(reply.text)
