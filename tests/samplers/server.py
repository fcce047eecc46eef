"""A small server that speaks vLLM's HTTP interface, answers as vLLM 0.32 does, and really samples.

It holds a base of its own, loads adapters from the folders that it is told by PEFT, decodes token by token from a cache
of prompts that it keeps until that is reset, and gives the log-probabilities of what it drew from.
"""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from rhythm.loading import find_source

EMBEDDED = find_source("embedded:tiny_countdown")


class Refusal(Exception):  # noqa: N818
    def __init__(self, code, message):
        super().__init__(message)
        self.code, self.message = code, message


class Server:
    """Args: how the server was started, and what goes wrong with it.

    flatness: its logits are those of the base and its adapter divided by this.
    dropped: connections that are closed without an answer, after what was asked is done.
    busy: resets of the cache that fail.
    """

    def __init__(
        self, name="embedded:tiny_countdown", *, lora=True, updating=True, dev=True, rank=16, length=512,
        flatness=1.0, mode="raw_logprobs", dropped=0, busy=0, port=0,
    ):  # fmt: skip
        self.name, self.lora, self.updating, self.dev, self.rank, self.length = name, lora, updating, dev, rank, length
        self.flatness, self.mode, self.dropped, self.busy = flatness, mode, dropped, busy
        self.model = AutoModelForCausalLM.from_pretrained(EMBEDDED).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
        self.adapters = {}  # name -> folder
        self.prefixes = {}  # (adapter, prompt) -> cache and logits
        self.events = []  # load NAME, unload NAME, reset, complete NAME
        self.requests, self.sent, self.hits = [], [], 0
        self.lock = Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"served": self}))
        self.http.daemon_threads = True
        Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_port}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, method, path, body):
        routes = {("GET", "/v1/models"): self.models, ("POST", "/v1/completions"): self.complete}
        if self.updating:
            routes |= {("POST", "/v1/load_lora_adapter"): self.load, ("POST", "/v1/unload_lora_adapter"): self.unload}
        if self.dev:
            routes |= {("POST", "/reset_prefix_cache"): self.reset, ("GET", "/server_info"): self.info}
        if (method, path) not in routes:
            raise Refusal(404, None)
        with self.lock:
            return routes[method, path](**body)

    def models(self):
        base = {"id": self.name, "root": str(EMBEDDED), "parent": None, "max_model_len": self.length}
        return {"data": [base, *({"id": n, "root": r, "parent": self.name} for n, r in self.adapters.items())]}

    def info(self):
        return {"vllm_config": {"model_config": {"logprobs_mode": self.mode}}}

    def load(self, lora_name, lora_path):
        if lora_name in self.adapters:
            raise Refusal(400, f"The lora adapter '{lora_name}' has already been loaded. If you want to load ...")
        if not self.lora:
            raise Refusal(500, "Call to add_lora method failed: LoRA is not enabled.")
        if not (Path(lora_path) / "adapter_config.json").is_file():
            raise Refusal(404, f"Loading lora {lora_name} failed: No adapter found for {lora_path}")
        if json.loads((Path(lora_path) / "adapter_config.json").read_text())["r"] > self.rank:
            raise Refusal(500, f"Call to add_lora method failed: LoRA rank is greater than max_lora_rank {self.rank}.")
        if isinstance(self.model, PeftModel):
            self.model.load_adapter(lora_path, lora_name)
        else:
            self.model = PeftModel.from_pretrained(self.model, lora_path, adapter_name=lora_name)
        self.adapters[lora_name] = lora_path
        self.events.append(f"load {lora_name}")
        return f"Success: LoRA adapter '{lora_name}' added successfully."

    def unload(self, lora_name):
        if lora_name not in self.adapters:
            raise Refusal(404, f"The lora adapter '{lora_name}' cannot be found.")
        del self.adapters[lora_name]
        for other in list(self.adapters)[-1:]:  # PEFT warns where the active one is deleted
            self.model.set_adapter(other)
        self.model.delete_adapter(lora_name)
        self.events.append(f"unload {lora_name}")
        return f"Success: LoRA adapter '{lora_name}' removed successfully."

    def reset(self):
        if self.busy:
            self.busy -= 1
            return {"success": False}
        self.prefixes.clear()
        self.events.append("reset")
        return {"success": True}

    @torch.no_grad()
    def complete(self, model, prompt, n, max_tokens, temperature, seed, stop_token_ids, stop, **others):
        assert others["logprobs"] == 0
        assert others["return_token_ids"]
        assert others["ignore_eos"]  # or the end of generation_config.json would count too
        assert (others["top_p"], others["top_k"], others["min_p"], others["repetition_penalty"]) == (1, 0, 0, 1)
        if model not in self.adapters:
            raise Refusal(404, f"The model `{model}` does not exist. Valid aliases: {self.name}.")
        self.requests.append({"prompt": prompt, "n": n, "seed": seed})
        self.events.append(f"complete {model}")
        self.model.set_adapter(model)
        cache, logits = self.prefix(model, prompt)
        cache.batch_repeat_interleave(n)
        logits = logits.expand(n, -1)
        draws = [torch.Generator().manual_seed(seed + i) for i in range(n)]
        ids, logps, ends = [[] for _ in range(n)], [[] for _ in range(n)], [None] * n
        for _ in range(min(max_tokens, self.length - len(prompt))):
            logits = logits / self.flatness
            tempered = (logits / temperature).log_softmax(-1)
            told = tempered if self.mode == "processed_logprobs" else logits.log_softmax(-1)
            tokens = [int(tempered[i].exp().multinomial(1, generator=draws[i])) for i in range(n)]
            for i in range(n):
                if ends[i] is None:
                    ids[i].append(tokens[i])
                    logps[i].append(float(told[i, tokens[i]]))
                    text = self.tokenizer.decode(ids[i], skip_special_tokens=True)
                    ends[i] = "stop" if tokens[i] in stop_token_ids or any(s in text for s in stop) else None
            if all(ends):
                break
            logits = self.model(input_ids=torch.tensor(tokens)[:, None], past_key_values=cache).logits[:, -1]
        self.sent += ids
        choices = [
            {"index": i, "token_ids": ids[i], "finish_reason": ends[i] or "length", "text": "",
             "logprobs": {"token_logprobs": logps[i]}}
            for i in reversed(range(n))
        ]  # fmt: skip
        return {"model": model, "choices": choices}

    def prefix(self, model, prompt):
        key = (model, tuple(prompt))
        self.hits += key in self.prefixes
        if key not in self.prefixes:
            cache = DynamicCache()
            self.prefixes[key] = (
                cache,
                self.model(input_ids=torch.tensor([prompt]), past_key_values=cache).logits[:, -1],
            )
        return copy.deepcopy(self.prefixes[key])


class Handler(BaseHTTPRequestHandler):
    served: Server

    def do_GET(self):
        self.respond({})

    def do_POST(self):
        self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}"))

    def respond(self, body):
        try:
            code, answer = 200, self.served.answer(self.command, self.path.partition("?")[0], body)
        except Refusal as refusal:
            told = {"error": {"message": refusal.message, "code": refusal.code}}
            code, answer = refusal.code, told if refusal.message else {"detail": "Not Found"}
        except (AssertionError, TypeError) as error:
            code, answer = 400, {"error": {"message": f"not how it is asked here: {error!r}", "code": 400}}
        if self.served.dropped:
            self.served.dropped -= 1
            self.close_connection = True
            return
        text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        with suppress(ConnectionError):  # who asked has stopped waiting
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    def log_message(self, *args):
        pass
