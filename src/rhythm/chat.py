"""Prompts as turns of a conversation, by the template that comes with a tokenizer."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

MARK = "MARK"


class Chat:
    """Writes a prompt as the user's turn and opens the assistant's.

    Args:
        tokenizer: has a chat template; beginning-of-sequence tokens are the template's business.
        system_prompt: a turn before the user's; None is none, or what the template puts there by itself.

    Raises:
        ValueError: the tokenizer has no template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None):
        if tokenizer.chat_template is None:
            raise ValueError(
                "policy.chat_template=true: the tokenizer comes without a chat template; leave it out for plain prompts"
            )
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt

    def __call__(self, prompt: str) -> str:
        return self.tokenizer.apply_chat_template(self._turns(prompt), tokenize=False, add_generation_prompt=True)

    def end_of_turn(self) -> int | None:
        """The special token that the template puts behind an assistant's turn, where it is one.

        A base model's own end of sequence is often another: Qwen3-4B-Base names <|endoftext|>, its template <|im_end|>.
        """
        turns = [*self._turns("?"), {"role": "assistant", "content": MARK}]
        behind = self.tokenizer.apply_chat_template(turns, tokenize=False).rpartition(MARK)[2]
        ids = self.tokenizer(behind, add_special_tokens=False)["input_ids"][:1]
        return ids[0] if ids and not self.tokenizer.decode(ids, skip_special_tokens=True) else None

    def _turns(self, prompt: str) -> list[dict[str, str]]:
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": prompt}]
