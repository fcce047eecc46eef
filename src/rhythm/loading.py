"""Base models from folders and the hub: dtype, attention, quantization, padding; and adapters on them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Container
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

EMBEDDED = "embedded:"
# What no plain LoRA adapter has: it lies outside of W + B·A, which the sampler folds and the reference leaves out.
NOT_PLAIN = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters")
# Tokens that no text contains, for tokenizers that pad with their end of sequence or not at all: Llama 3.1 and later
# have the first (128004), Qwen 3 the second (151654), which its text models never meet.
PADS = ("<|finetune_right_pad_id|>", "<|vision_pad|>", "<pad>", "[PAD]")


def load_base(
    path: str,
    *,
    dtype: str = "float32",
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
    quantization: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The frozen base model, without dropout, and its tokenizer. `embedded:NAME` and folders need no network."""
    source = find_source(path)
    torch_dtype = find_dtype(dtype)
    quantized = {} if quantization is None else quantized_loading(quantization, torch_dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch_dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            **quantized,
        )
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"policy.path={path}: no model could be loaded from there: {reason}") from error
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        mend = "read it, then set policy.trust_remote_code=true to run it"
        raise ValueError(f"policy.path={path}: this model comes with code of its own; {mend}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"policy.path={path}: the tokenizer names no end-of-sequence token, so no completion could end"
        )
    silence_dropout(model)
    return model.requires_grad_(False), tokenizer


def find_source(path: str) -> str | Path:
    """The folder or hub name that policy.path stands for.

    Raises:
        ValueError, FileNotFoundError: there is no such embedded policy, or no such folder.
    """
    if path.startswith(EMBEDDED):
        source = Path(str(resources.files("rhythm") / "assets" / path.removeprefix(EMBEDDED)))
        if not source.is_dir():
            names = sorted(folder.name for folder in source.parent.iterdir() if folder.is_dir())
            raise ValueError(f"policy.path={path}: no such embedded policy; there is {', '.join(names)}")
        return source
    if path.startswith(("/", ".", "~")) and not Path(path).is_dir():  # no hub name either
        raise FileNotFoundError(f"policy.path={path}: there is no such folder")
    return path


def find_dtype(name: str) -> torch.dtype:
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError(f"policy.dtype={name}: use float32, bfloat16 or float16")
    return getattr(torch, name)


def quantized_loading(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` needs for a base in 4 bits: NF4 with quantized constants, as in QLoRA (arXiv:2305.14314).

    Raises:
        ValueError: another name, no CUDA device, or no bitsandbytes.
    """
    if name != "4bit":
        raise ValueError(f"policy.quantization={name}: use 4bit, or null for none")
    if not torch.cuda.is_available():
        raise ValueError("policy.quantization=4bit needs a CUDA device, and there is none here; leave it out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("policy.quantization=4bit needs bitsandbytes: pip install -e '.[quantization]'")
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": _own_gpu()}}  # quantizing happens there


def _own_gpu() -> int:
    """The number on its node of the GPU that this process of a run trains on, as Lightning will choose it."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def choose_pad(tokenizer: PreTrainedTokenizerBase, ends: Container[int]) -> None:
    """Gives the tokenizer a pad token that ends nothing, where its vocabulary has one; else its end of sequence.

    Masks alone say what is padding; a pad token of its own keeps saved batches and other tools from reading an end.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return
    vocabulary = tokenizer.get_vocab()
    own = (token for token in PADS if token in vocabulary and vocabulary[token] not in ends)
    tokenizer.pad_token = next(own, tokenizer.eos_token)


def load_adapter(base: PreTrainedModel, folder: str, *, is_trainable: bool = False) -> PeftModel:
    """Puts a saved LoRA adapter on a base model; whatever dropout it was trained with is left out.

    Raises:
        FileNotFoundError: the folder is no adapter.
        ValueError: it is of another kind, or was made for another base.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"policy.adapter={folder}: no adapter_config.json there; give the folder of a PEFT adapter"
        )
    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():  # PEFT would go on to a pickle, and to the hub
        raise FileNotFoundError(
            f"policy.adapter={folder}: no adapter_model.safetensors there, and pickles are not loaded; save it with "
            "save_pretrained(folder, safe_serialization=True)"
        )
    config = PeftConfig.from_pretrained(folder)
    if config.peft_type != "LORA" or config.bias != "none" or any(getattr(config, name) for name in NOT_PLAIN):
        raise ValueError(f"policy.adapter={folder}: only plain LoRA adapters, of weight matrices alone, can be used")
    config.lora_dropout = 0.0
    config.inference_mode, config.base_model_name_or_path = not is_trainable, base.name_or_path
    model, saved = get_peft_model(base, config), load_file(file)
    own = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    given = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if differing := sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name)):
        raise ValueError(
            f"policy.adapter={folder} does not fit this base: {len(differing)} tensors differ, first {differing[0]}: "
            f"{given.get(differing[0])} saved, {own.get(differing[0])} here; use the policy.path that it was trained on"
        )
    set_peft_model_state_dict(model, saved)
    return model


def load_weights(base: PreTrainedModel, folder: str | None) -> PreTrainedModel:
    """Gives a base the weights of a saved model of its kind; None leaves it as it is.

    Raises:
        OSError, ValueError: the folder holds no model, or another kind of model.
    """
    if folder is None:
        return base
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(
            f"policy.adapter={folder}: no config.json there; with policy.full=true give the folder of a whole model"
        )
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=base.dtype, use_safetensors=True)  # no pickle
    try:
        base.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        raise ValueError(f"policy.adapter={folder}: not a model of the same shape as policy.path") from error
    return base


def silence_dropout(model: nn.Module) -> None:
    """Updates run in train mode; any dropout there would make the first ratio of an iteration differ from 1."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float):  # as attention layers keep it
                setattr(module, name, 0.0)
