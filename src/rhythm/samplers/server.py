"""The HTTP interface of `vllm serve` 0.32 and 0.33, as far as sampling needs it (https://docs.vllm.ai)."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

log = logging.getLogger(__name__)
START = "experiments/vllm has the command that starts one"
BUSY = (429, 502, 503, 504)  # not now; also a proxy's word for a server that is starting


class RefusedError(ValueError):
    """The server answered, and did not do it."""

    def __init__(self, code: int, reason: str):
        super().__init__(reason)
        self.code = code


class VLLMServer:
    """The calls of a server's HTTP interface that sampling needs.

    Args:
        url: of the server, such as http://127.0.0.1:8000.
        timeout: seconds that one answer may take.
        patience: seconds for which a connection that fails is tried again.

    Raises:
        ConnectionError: from every call that has had no answer by then.
        RefusedError: from every call that the server refuses, in its own words.
    """

    def __init__(self, url: str, *, timeout: float = 1800.0, patience: float = 60.0):
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.patience = patience
        self._answered = True  # the latest call, or there is none yet

    def models(self) -> dict[str, dict[str, Any]]:
        """Names to cards: of the base, whose `parent` is None, and of the adapters, whose `root` is their folder."""
        try:
            return {card["id"]: card for card in self._call("/v1/models")["data"]}
        except (RefusedError, KeyError) as error:
            raise ValueError(
                f"sampler.url={self.url}: {error} to /v1/models: no vLLM server, or one with --api-key; {START}"
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
        return self._call("/server_info?config_format=json")["vllm_config"]["model_config"]["logprobs_mode"]

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._call("/v1/completions", request)

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()  # POST, where there is a body
        request = Request(self.url + path, data, {"Content-Type": "application/json"})
        until, pause = monotonic() + self.patience, 0.1
        while True:
            try:
                with urlopen(request, timeout=self.timeout) as answer:
                    text = answer.read()
                self._answered = True
                return _parsed(text)
            except HTTPError as error:
                if error.code not in BUSY:
                    raise RefusedError(error.code, _reason(error)) from error
                failed: Exception = error
            except (OSError, HTTPException) as error:
                failed = error
            reason = getattr(failed, "reason", failed)
            if monotonic() + pause > until:
                raise ConnectionError(self._silence(path, reason)) from failed
            if self._answered:
                self._answered = False  # of many requests at once, one says so
                log.warning(f"{self.url} does not answer ({reason}); trying for {self.patience:g} s")
            sleep(pause)
            pause = min(2 * pause, 8.0)

    def _silence(self, path: str, reason: Any) -> str:
        if isinstance(reason, TimeoutError):
            return f"sampler.timeout={self.timeout:g}: {self.url}{path} takes longer; raise it, or lower group_size"
        return f"sampler.url={self.url}: no answer to {path} ({reason}); is a vLLM server running there? {START}"


def _parsed(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError:  # a sentence, where there is nothing to tell, or nothing
        return {}


def _reason(error: HTTPError) -> str:
    """The server's own words for what it refuses, on one line."""
    text = error.read().decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError):
        told = json.loads(text)
        text = told["detail"] if "detail" in told else told["error"]["message"]
    return " ".join(text.split())[:160] or error.reason
