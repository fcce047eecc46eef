"""Sampling by a vLLM server of its own environment: the adapter is sent as LoRA, completions come back as token ids."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from rhythm.loading import find_source
from rhythm.losses import importance_weights
from rhythm.policy import Policy
from rhythm.rollout import pack
from rhythm.samplers.base import Sampler
from rhythm.samplers.server import Card, RefusedError, VLLMServer
from rhythm.types import Prompts, Rollout

PREFIX = "rhythm-"  # of adapters' names
AT_ONCE = 256  # requests under way
LOGPROBS = "processed_logprobs"  # of logits / temperature


class Completion(NamedTuple):
    """What the server says of one completion."""

    ids: list[int]  # the token that ends it included
    logps: list[float]  # of these tokens, in nats
    truncated: bool  # the token limit came before the end


class VLLMSampler(Sampler):
    """A vLLM server writes, with the policy's adapter as LoRA on a base of its own; nothing is merged.

    No stale adapter is ever sampled from. An adapter's name on the server, and its folder, is a digest of its tensors;
    whoever samples computes it from the policy at hand, and the server refuses names that are not loaded. A folder is
    written once, so that the server finds the same adapter there whenever it reads it again, and its prefix cache,
    which goes by these names, is reset after each swap.

    A server is for one run at a time: adapters of other runs are taken away from it. Held-out evaluation does not ask
    it: pass@1 is of the policy as it is scored.

    Args:
        url: of the server.
        folder: adapters are written there; the server must see it under the same path.
        model: the server's name of the base; None is the policy's own path.
        importance_cap: C ≥ 1; a token's weight is min(π_scorer/π_sampler, C), `importance_weights`; None is 1.
        timeout: seconds that the completions of one prompt may take.
        patience: seconds for which a connection that fails is tried again, and that any other answer may take.
    """

    def __init__(
        self,
        url: str,
        folder: str | Path,
        *,
        model: str | None = None,
        importance_cap: float | None = 2.0,
        timeout: float = 1800.0,
        patience: float = 60.0,
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"sampler.url={url}: takes an address like http://127.0.0.1:8000")
        if importance_cap is not None and importance_cap < 1:
            raise ValueError(f"sampler.importance_cap={importance_cap}: must be at least 1, or null for no correction")
        for name, seconds in {"timeout": timeout, "patience": patience}.items():
            if seconds <= 0:
                raise ValueError(f"sampler.{name}={seconds}: must be above 0")
        self.server = VLLMServer(url, timeout=timeout, patience=patience)
        self.folder = Path(folder).resolve()
        self.model = model
        self.importance_cap = importance_cap
        self._logprobs_mode: str | None = None  # of the server, once it was asked

    # ---- the adapter

    def prepare(self, policy: Policy) -> None:
        """Gives the server today's adapter, where it has moved, and takes the earlier ones away.

        Raises:
            ConnectionError: the server does not answer.
            ValueError: it serves another base, takes no adapters, or tells no log-probabilities; or the policy is one
                that no server samples from.
        """
        if policy.full:
            raise ValueError("policy.full=true: sampler=vllm sends an adapter, and there is none; use sampler=local")
        if policy.quantized:
            raise ValueError("policy.quantization=4bit: a server's base is not the one in 4 bits; use sampler=local")
        name = adapter_name(policy)
        folder, served = self.folder / name, self.server.models()
        self._check_base(policy, served)
        self._check_logprobs(temperature=1.0)
        if name in served and Path(served[name].root) == folder and folder.is_dir():
            return
        if name in served:  # from another folder, or one that is gone
            self.server.unload(name)
        write_adapter(policy, folder)
        try:
            self._load(name, policy)
            self._reset_prefix_cache()
        except (OSError, ValueError):
            shutil.rmtree(folder)
            with suppress(OSError):  # not empty: a run is under way
                self.folder.rmdir()
            raise
        for other in served:
            if other != name and other.startswith(PREFIX):
                self.server.unload(other)
        for other in (*self.folder.glob(f"{PREFIX}*"), *self.folder.glob(f".{PREFIX}*")):
            if other != folder:
                shutil.rmtree(other)

    def _check_base(self, policy: Policy, served: dict[str, Card]) -> None:
        source = find_source(policy.path)
        wanted = {self.model} if self.model else {policy.path, str(source), str(Path(source).resolve())}
        bases = {name: card.root for name, card in served.items() if card.parent is None}
        if wanted.isdisjoint({*bases, *bases.values()}):
            key, name = ("sampler.model", self.model) if self.model else ("policy.path", policy.path)
            raise ValueError(
                f"{key}={name}: the server at {self.server.url} serves {', '.join(bases)}; start it with the base of "
                "this policy, or say sampler.model= where that is the same under another name"
            )

    def _load(self, name: str, policy: Policy) -> None:
        try:
            self.server.load(name, self.folder / name)
        except RefusedError as error:
            if name in self.server.models():
                return  # by an earlier attempt, whose answer did not arrive
            if error.code == 404 and str(self.folder) in error.reason:
                raise ValueError(
                    f"sampler.folder={self.folder}: the server at {self.server.url} finds no adapter there; name a "
                    "folder that it sees under the same path"
                ) from error
            config = policy.model.peft_config["default"]
            raise ValueError(
                f"sampler.url={self.server.url}: the server takes no adapter ({error.reason}); start it with "
                f"--enable-lora --max-lora-rank {max(config.r, *config.rank_pattern.values(), 0)} and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
            ) from error

    def _reset_prefix_cache(self) -> None:
        until = monotonic() + self.server.patience
        while not self.server.reset_prefix_cache():
            if monotonic() > until:
                raise ConnectionError(
                    f"sampler.url={self.server.url}: others have used the prefix cache for {self.server.patience:g} s; "
                    "a server is for one run at a time, start another"
                )
            sleep(0.25)

    def _check_logprobs(self, temperature: float) -> None:
        """Raises ValueError where the server's numbers are not log-probabilities of logits / temperature."""
        self._logprobs_mode = self._logprobs_mode or self.server.logprobs_mode()
        if self._logprobs_mode not in ((LOGPROBS, "raw_logprobs") if temperature == 1 else (LOGPROBS,)):
            raise ValueError(
                f"algorithm.temperature={temperature:g}: the server at {self.server.url} gives {self._logprobs_mode}; "
                f"start it with --logprobs-mode {LOGPROBS}"
            )

    # ---- completions

    def sample(
        self,
        policy: Policy,
        prompts: Prompts,
        *,
        group_size: int,
        max_completion_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> Rollout:
        """As `Sampler.sample`, with the server's log-probabilities in `sampler_logps`; `prepare` comes before.

        Every completion has a seed of its own, yet the same seeds need not give the same completions: a server's
        numbers depend on what it computes together.

        Raises:
            ConnectionError: the server does not answer.
            ValueError: it refuses, or its answer is not what was asked for.
        """
        self._check_logprobs(temperature)
        request = {
            "model": adapter_name(policy),
            "n": group_size,
            "max_tokens": max_completion_tokens,
            "temperature": temperature,
            # Left out, these would be taken from the model's generation_config.json.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            # What ends a completion is the policy's to say; the model's own end of sequence is among it.
            "ignore_eos": True,
            "stop_token_ids": list(policy.stopping.token_ids),
            "stop": list(policy.stopping.strings),
            "logprobs": 0,  # none beside the sampled token's
            "return_token_ids": True,
        }
        # The server adds a completion's number to its prompt's seed.
        seeds = [(seed + number * group_size) % 2**62 for number in range(len(prompts.problems))]
        ids = [row[kept].tolist() for row, kept in zip(prompts.input_ids, prompts.attention_mask.bool(), strict=True)]
        answers = complete_all(
            self.server, [request | {"prompt": p, "seed": s} for p, s in zip(ids, seeds, strict=True)]
        )
        try:
            completions = [completion for answer in answers for completion in read_completions(answer, request)]
        except ValueError as error:
            raise ValueError(f"sampler.url={self.server.url}: {error}") from error
        return to_rollout(prompts, completions, group_size, policy)

    def importance_weights(self, rollout: Rollout) -> Tensor | None:
        if self.importance_cap is None:
            return None
        mask = rollout.completion_mask
        return importance_weights(rollout.old_logps, rollout.sampler_logps, mask, self.importance_cap)


def complete_all(server: VLLMServer, requests: Sequence[dict[str, Any]]) -> list[Any]:
    """The answers; the first call that fails is told at once, and those under way hold up nothing, not an exit."""

    def complete(number: int) -> tuple[int, Any]:
        return number, server.complete(requests[number])

    try:
        with ThreadPool(min(len(requests), AT_ONCE)) as pool:
            answers = dict(pool.imap_unordered(complete, range(len(requests))))
    except RefusedError as error:
        if error.code != 404:
            raise
        raise ValueError(
            f"sampler.url={server.url}: {error.reason} Was the server started again, or does another run use "
            "it? This one goes on with ckpt_path=last"
        ) from error
    return [answers[number] for number in range(len(requests))]


def read_completions(answer: Any, request: dict[str, Any]) -> list[Completion]:
    """The n completions that were asked for, in their order; ValueError where one is not there, or not whole."""
    mend = "use the version that experiments/vllm names"
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        model, numbers = answer["model"], [choice["index"] for choice in choices]
        ids = [list(choice["token_ids"]) for choice in choices]
        logps = [[float(logp) for logp in choice["logprobs"]["token_logprobs"]] for choice in choices]
        ends = [choice["finish_reason"] for choice in choices]
    except (KeyError, TypeError) as error:
        raise ValueError(f"an answer without tokens or their log-probabilities ({error}); {mend}") from error
    if model != request["model"] or numbers != list(range(request["n"])):
        raise ValueError(f"{len(numbers)} completions by {model}, not {request['n']} by {request['model']}; {mend}")
    for row, of_row, end in zip(ids, logps, ends, strict=True):
        whole = end == "stop" or (end == "length" and len(row) == request["max_tokens"])
        if not row or len(row) != len(of_row) or not whole:
            raise ValueError(
                f"{len(row)} tokens with {len(of_row)} log-probabilities, ended by {end}, are no completion of "
                f"{request['max_tokens']}; raise --max-model-len, or {mend}"
            )
    return [Completion(*told, end == "length") for *told, end in zip(ids, logps, ends, strict=True)]


def adapter_name(policy: Policy) -> str:
    """The same for adapters that are equal bit for bit, on every rank, and for no others."""
    config = policy.model.peft_config["default"]
    scaling = repr((config.lora_alpha, config.r, config.use_rslora, config.rank_pattern, config.alpha_pattern))
    return PREFIX + hashlib.sha256(save(policy.adapter_state(), {"scaling": scaling})).hexdigest()[:24]


def write_adapter(policy: Policy, folder: Path) -> None:
    """Writes beside the folder and renames: whoever sees it sees all of it."""
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}")
        policy.save_adapter(partial)
        partial.rename(folder)


def to_rollout(prompts: Prompts, completions: Sequence[Completion], group_size: int, policy: Policy) -> Rollout:
    """N = B·G completions, those of a prompt adjacent, as tensors behind their prompts."""
    device = prompts.input_ids.device
    lengths = torch.tensor([len(completion.ids) for completion in completions], device=device)
    mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
    ids, logps = torch.zeros(mask.shape, dtype=torch.long, device=device), torch.zeros(mask.shape, device=device)
    ids[mask] = torch.tensor([token for completion in completions for token in completion.ids], device=device)
    logps[mask] = torch.tensor([logp for completion in completions for logp in completion.logps], device=device)
    truncated = torch.tensor([completion.truncated for completion in completions], device=device)
    rollout = pack(prompts, ids, mask, truncated=truncated, group_size=group_size, tokenizer=policy.tokenizer)
    rollout.sampler_logps = logps
    return rollout
