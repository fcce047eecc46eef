"""Who writes the completions: the policy itself, or a server elsewhere."""

from rhythm.samplers.base import Sampler
from rhythm.samplers.local import LocalSampler
from rhythm.samplers.vllm import VLLMSampler

__all__ = ["LocalSampler", "Sampler", "VLLMSampler"]
