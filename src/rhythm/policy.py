"""One set of base weights: the policy is the base with its LoRA adapter, the reference is the base without."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from rhythm.chat import Chat
from rhythm.compiling import compile_layers
from rhythm.folding import folded, make_foldable
from rhythm.loading import choose_pad, load_adapter, load_base, load_weights
from rhythm.shards import is_sharded, whole
from rhythm.stopping import Stopping


class Policy(nn.Module):
    """A LoRA-adapted causal language model with its tokenizer.

    Args:
        path: a folder or hub name of a transformers model, or `embedded:tiny_countdown`, which comes with the package.
        rank: LoRA rank r.
        alpha: LoRA α; updates are scaled by α/r.
        targets: module names to adapt, or "all-linear" (every linear layer but the output head).
        lora_dropout: must be 0: with dropout the first ratio of an iteration would not be 1.
        adapter: a folder of a PEFT LoRA adapter to start from, in safetensors; its rank, alpha and targets are used.
        dtype: of the base weights; adapters are kept in float32.
        attn_implementation: of transformers; named here so that no config.json chooses a kernel to download.
        quantization: "4bit" keeps the base's matrices in 4 bits (bitsandbytes, CUDA); the adapter stays in float32.
        activation_checkpointing: keep only each layer's input in an update and compute the rest again; a third more
            time for a fraction of the memory. Changes no result.
        full: train every weight instead of an adapter, in float32: an update of 1e-6 is lost in bfloat16. The reference
            is a frozen copy, so 20 bytes a parameter with gradients and Adam's moments, where LoRA in bfloat16 takes
            little more than 2; checkpoints hold every weight, and `adapter` is a folder of weights to start from.
        chat_template: prompts are the user's turn of the tokenizer's own template, and its end of turn ends a
            completion too; False continues the plain text.
        system_prompt: the turn before; needs chat_template.
        stop_strings: text that ends a completion; the token that completes it is the last one.
        trust_remote_code: run the Python files that come with a model whose architecture transformers does not know,
            with your rights. Read them first.
        fold: sample, score and learn with the adapter folded into the matrices, afresh for each stage: fewer and
            larger products, at the memory of a second copy of the adapted matrices. None does so for a float32 base; in
            a lower dtype the sum would be rounded, and small updates lost. So it is in the products of
            trainer.precision=bf16-mixed too, where False keeps the adapter apart.
        compile: `torch.compile` the layers for updates: their first pass takes a minute or so, later ones less. Same
            gradient to rounding.
    """

    def __init__(
        self,
        path: str,
        *,
        rank: int = 16,
        alpha: int = 32,
        targets: str | Sequence[str] = "all-linear",
        lora_dropout: float = 0.0,
        adapter: str | None = None,
        dtype: str = "float32",
        attn_implementation: str = "sdpa",
        quantization: str | None = None,
        activation_checkpointing: bool = False,
        full: bool = False,
        chat_template: bool = False,
        system_prompt: str | None = None,
        stop_strings: Sequence[str] = (),
        trust_remote_code: bool = False,
        fold: bool | None = None,
        compile: bool = False,
    ):
        super().__init__()
        if lora_dropout:
            raise ValueError(f"policy.lora_dropout={lora_dropout}: must be 0, or the policy ratio would not start at 1")
        if rank < 1:
            raise ValueError(f"policy.rank={rank}: must be at least 1")
        if system_prompt is not None and not chat_template:
            raise ValueError("policy.system_prompt is a turn of a conversation: add policy.chat_template=true")
        if full:
            check_full(dtype, quantization)
        fold = may_fold(fold, dtype, plain=quantization is None and not full)
        self.path = path
        self.full = full
        self.quantized = quantization is not None
        base, self.tokenizer = load_base(
            path,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            quantization=quantization,
        )
        self.chat = Chat(self.tokenizer, system_prompt) if chat_template else None
        self.stopping = Stopping(self.tokenizer, _named_ends(base, self.chat), stop_strings)
        choose_pad(self.tokenizer, self.stopping.token_ids)
        if activation_checkpointing:
            base.activation_checkpointing_enable({"use_reentrant": False})
        # In a tuple, so that it is no submodule: it has no gradients, no optimizer state and is never saved.
        self._frozen: tuple[PreTrainedModel, ...] = ()
        if full:
            self._frozen = (copy.deepcopy(base),)
            self.model = load_weights(base, adapter).requires_grad_(True)
        else:
            if adapter is None:
                targets = targets if isinstance(targets, str) else list(targets)
                config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
                self.model = get_peft_model(base, config)
            else:
                self.model = load_adapter(base, adapter, is_trainable=True)
            if fold:
                make_foldable(self.model)
        if compile:
            compile_layers(self.model)
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def sharded(self) -> bool:
        """Whether frozen weights are in shards: a pass gathers them, and all processes make the same passes."""
        return is_sharded(self.model)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """What is trained: the adapter, or with `full` every weight."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def adapter_state(self) -> dict[str, Tensor]:
        if self.full:
            return self.model.state_dict()
        # Not of the model's state_dict, which would cut the frozen weights into shards again within `whole`.
        return get_peft_model_state_dict(self.model, {name: p.detach() for name, p in self.model.named_parameters()})

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError where the tensors are not those of this adapter: another base, rank or targets."""
        own = {name: tuple(tensor.shape) for name, tensor in self.adapter_state().items()}
        given = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if own != given:
            differing = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
            name = differing[0]
            raise ValueError(
                f"the checkpoint's adapter does not fit this policy: {len(differing)} tensors differ, first {name}: "
                f"{given.get(name)} saved, {own.get(name)} here; use its policy.path, policy.rank and policy.targets"
            )
        if self.full:
            self.model.load_state_dict(state)
        else:
            set_peft_model_state_dict(self.model, state)

    def fingerprint(self) -> str:
        """A digest of the base: names, shapes and the first values of its weights."""
        digest = hashlib.sha256()
        (base,) = self._frozen or (self.model,)
        for name, parameter in base.named_parameters():
            if not parameter.requires_grad:
                digest.update(f"{name} {tuple(parameter.shape)} {parameter.flatten()[:8].tolist()}".encode())
        return digest.hexdigest()[:16]

    def check_base(self, fingerprint: str) -> None:
        """Raises ValueError where another base has this fingerprint: a path may lead to other weights than it did."""
        own = self.fingerprint()
        if own != fingerprint:
            raise ValueError(
                f"policy.path={self.path}: the checkpoint belongs to other base weights, {fingerprint}; these are {own}"
            )

    def save_adapter(self, folder: Path) -> None:
        """A folder that PEFT loads, or with `full` one that transformers loads."""
        save_weights(self.model, folder)
        if self.full:
            self.tokenizer.save_pretrained(folder)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the reference: the base weights alone."""
        if not self._frozen:
            with self.model.disable_adapter():
                yield
            return
        trained = self.model
        self.model = self._frozen[0].to(self.device)
        try:
            yield
        finally:
            self.model = trained

    def folded(self) -> AbstractContextManager[None]:
        """Inside, the model computes with today's adapter folded in, where it can; nothing may step meanwhile."""
        return nullcontext() if self.sharded else folded(self.model)

    def whole(self) -> AbstractContextManager[None]:
        """Around passes without a gradient that processes make each in its own number; see `shards.whole`."""
        return whole(self.model)


def save_weights(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """`save_pretrained`; safetensors makes its files for their owner alone, and these get the rights of the others."""
    model.save_pretrained(folder)
    (config, *_) = Path(folder).glob("*config.json")
    for weights in Path(folder).glob("*.safetensors"):
        shutil.copymode(config, weights)


def check_full(dtype: str, quantization: str | None) -> None:
    """Raises ValueError where every weight cannot be trained: rounded ones would swallow most updates."""
    if dtype != "float32" or quantization is not None:
        kept = f"policy.quantization={quantization}" if quantization else f"policy.dtype={dtype}"
        raise ValueError(
            f"policy.full=true with {kept}: weights that are trained are kept in float32; set policy.dtype=float32 "
            "policy.quantization=null (trainer.precision=bf16-mixed computes in bfloat16)"
        )


def may_fold(wanted: bool | None, dtype: str, *, plain: bool) -> bool:
    """Whether to fold the adapter into the matrices: by default where the sum is exact to float32.

    Raises:
        ValueError: wanted where there are no plain matrices with an adapter to fold in.
    """
    if wanted and not plain:
        raise ValueError("policy.fold=true needs a LoRA adapter on a base that is not quantized; leave it out")
    return (dtype == "float32" and plain) if wanted is None else wanted


def _named_ends(model: PreTrainedModel, chat: Chat | None) -> set[int]:
    """The ends of sequence of generation_config.json, one or several, and a chat template's end of turn."""
    named = model.generation_config.eos_token_id
    ends = set() if named is None else {named} if isinstance(named, int) else set(named)
    turn = chat.end_of_turn() if chat else None
    return ends if turn is None else ends | {turn}
