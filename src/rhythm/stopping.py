"""What ends a completion: one of several tokens, or text that it has come to contain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


class Stopping:
    """Ends a completion with the first token that is an end of sequence or completes one of some strings.

    Args:
        tokenizer: its own end of sequence always counts.
        token_ids: further ends of sequence: a generation_config.json may name several.
        strings: a completion's text is that of its tokens together, special ones left out, as a verifier reads it. The
            token that completes a string belongs to the completion, all of it: nothing is cut off within a token.

    Raises:
        ValueError: the tokenizer cannot write one of the strings.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, token_ids: Iterable[int] = (), strings: Sequence[str] = ()):
        self.tokenizer = tokenizer
        self.token_ids = tuple(sorted({tokenizer.eos_token_id, *token_ids}))
        self._ids = torch.tensor(self.token_ids)
        self.strings = tuple(strings)
        for string in self.strings:
            ids = tokenizer(string, add_special_tokens=False)["input_ids"]
            if not ids or string.strip() not in self._text(ids):
                raise ValueError(f"policy.stop_strings: the tokenizer cannot write {string!r}; leave it out")
        if self.strings:
            self._visible, self._completing = self._read_vocabulary()

    def is_end(self, ids: Tensor) -> Tensor:
        """True on ends of sequence; of any shape."""
        if self._ids.device != ids.device:
            self._ids = self._ids.to(ids.device)  # once: a copy makes a GPU wait
        return torch.isin(ids, self._ids)

    def ended(self, written: Tensor, rows: Tensor) -> Tensor:
        """Whether the latest token of some completions ends them.

        Args:
            written: [N, t], what has been written so far.
            rows: [n], the completions to look at.
        Returns:
            [n] bool.
        """
        latest = written[rows, -1]
        ended = self.is_end(latest)
        if self.strings:
            candidates = look_up(self._completing, latest.cpu())  # few: those whose text might complete a string
            for i in candidates.nonzero()[:, 0].tolist():
                ended[i] |= self._contains_string(written[rows[i]].cpu())
        return ended

    def _contains_string(self, ids: Tensor) -> bool:
        """Whether the text of the last tokens holds a string; each visible token has at least one byte of its own."""
        visible = ids[look_up(self._visible, ids)]
        reach = max(len(string.encode()) for string in self.strings) + 4  # a character has up to 4 bytes
        text = self._text(visible[-reach:].tolist())
        return any(string in text for string in self.strings)

    def _read_vocabulary(self) -> tuple[Tensor, Tensor]:
        """The tokens that have text [V], and those whose text may hold the end of a string [V], both bool.

        The text of a token is what it adds behind another, for some tokenizers write a space between the two. Tokens
        that are parts of a character decode to U+FFFD.
        """
        (*_, anchor) = self.tokenizer(self.strings[0], add_special_tokens=False)["input_ids"]
        pairs = [[anchor, token] for token in range(len(self.tokenizer))]
        before = len(self._text([anchor]))
        texts = [text[before:] for text in self.tokenizer.batch_decode(pairs, skip_special_tokens=True)]
        ends = {string[-1] for string in self.strings} | {"�"}
        return torch.tensor([bool(t) for t in texts]), torch.tensor([not ends.isdisjoint(t) for t in texts])

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def look_up(table: Tensor, ids: Tensor) -> Tensor:
    """table[ids], False for ids beyond it: a model may have more output columns than its tokenizer has tokens."""
    return table[ids.clamp(max=len(table) - 1)] & (ids < len(table))
