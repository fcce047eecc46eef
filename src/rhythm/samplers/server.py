"""The HTTP interface of `vllm serve` 0.32 and 0.33, as far as sampling needs it (https://docs.vllm.ai)."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

log = logging.getLogger(__name__)
START = "experiments/vllm has the command that starts one"
BUSY = (429, 502, 503, 504)  # not now; also a proxy's word for a server that is starting


class RefusedError(ValueError):
    """The server answered, and did not do it; `reason` is in its own words."""

    def __init__(self, line: str, code: int, reason: str):
        super().__init__(line)
        self.code = code
        self.reason = reason


class Card(NamedTuple):
    """What the server says of a model that it serves."""

    root: str  # the folder or hub name that it was loaded from
    parent: str | None  # of an adapter, the name of its base


class VLLMServer:
    """The calls of a server's HTTP interface that sampling needs. They go there directly, whatever the proxies.

    Args:
        url: of the server, such as http://127.0.0.1:8000.
        timeout: seconds that completions may take.
        patience: seconds for which a connection that fails is tried again, and that any other answer may take.

    Raises:
        ConnectionError: from every call that has had no answer by then.
        RefusedError: from every call that the server refuses.
    """

    def __init__(self, url: str, *, timeout: float = 1800.0, patience: float = 60.0):
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.patience = patience
        self._open = build_opener(ProxyHandler({})).open
        self._answered = True  # the latest call, or there is none yet

    def models(self) -> dict[str, Card]:
        """What it serves, by name: the base, which has no parent, and adapters."""
        try:
            cards = self._call("/v1/models")["data"]
            return {card["id"]: Card(card["root"], card["parent"]) for card in cards}
        except (RefusedError, KeyError, TypeError) as error:
            told = error.reason if isinstance(error, RefusedError) else "another list of models"
            raise ValueError(
                f"sampler.url={self.url}: {told} to /v1/models: no vLLM server, or one with --api-key; {START}"
            ) from error

    def load(self, name: str, folder: Path) -> None:
        self._call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def unload(self, name: str) -> None:
        try:
            self._call("/v1/unload_lora_adapter", {"lora_name": name})
        except RefusedError as error:
            if error.code != 404:  # not gone, by an earlier attempt whose answer did not arrive
                raise

    def reset_prefix_cache(self) -> bool:
        """Whether it was reset; it is not while requests are under way."""
        return self._call("/reset_prefix_cache", {}).get("success", True)

    def logprobs_mode(self) -> str:
        """What the log-probabilities of its completions are: raw_logprobs, processed_logprobs, or logits."""
        try:
            return self._call("/server_info?config_format=json")["vllm_config"]["model_config"]["logprobs_mode"]
        except (RefusedError, KeyError, TypeError) as error:
            told = error.reason if isinstance(error, RefusedError) else "no logprobs_mode"
            raise ValueError(
                f"sampler.url={self.url}: {told} to /server_info; start the server with VLLM_SERVER_DEV_MODE=1"
            ) from error

    def complete(self, request: dict[str, Any]) -> Any:
        return self._call("/v1/completions", request, key="timeout")

    def _call(self, path: str, body: dict[str, Any] | None = None, *, key: str = "patience") -> Any:
        """The answer, for which it waits as long as `key` says."""
        data = None if body is None else json.dumps(body).encode()  # POST, where there is a body
        request = Request(self.url + path, data, {"Content-Type": "application/json"})
        until, pause = None, 0.1  # patience begins with the first failure
        while True:
            try:
                with self._open(request, timeout=getattr(self, key)) as answer:
                    text = answer.read()
                self._answered = True
                return _parsed(text)
            except HTTPError as error:
                if error.code not in BUSY:
                    raise self._refused(path, error) from error
                failed: Exception = error
            except TimeoutError as error:  # of the answer; one of the connection comes as URLError
                mend = "raise it" if key == "patience" else "raise it, or lower group_size"
                line = f"sampler.{key}={getattr(self, key):g}: {self.url}{path} takes longer; {mend}"
                raise ConnectionError(line) from error
            except (OSError, HTTPException) as error:
                failed = error
            until = until or monotonic() + self.patience
            reason = getattr(failed, "reason", failed)
            if monotonic() + pause > until:
                raise ConnectionError(
                    f"sampler.url={self.url}: no answer to {path} ({reason}); is a vLLM server running there? {START}"
                ) from failed
            if self._answered:
                self._answered = False  # of many requests at once, one says so
                log.warning(f"{self.url} does not answer ({reason}); trying for {self.patience:g} s")
            sleep(pause)
            pause = min(2 * pause, 8.0)

    def _refused(self, path: str, error: HTTPError) -> RefusedError:
        """With the server's own words, on one line."""
        text = error.read().decode(errors="replace")
        with suppress(ValueError, KeyError, TypeError):
            told = json.loads(text)
            text = told["detail"] if "detail" in told else told["error"]["message"]
        reason = " ".join(str(text).split())[:160] or error.reason
        line = f"sampler.url={self.url}: {path} is refused: {reason}; what the server writes says more"
        return RefusedError(line, error.code, reason)


def _parsed(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError:  # a sentence, where there is nothing to tell, or nothing
        return {}
