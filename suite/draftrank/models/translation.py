"""Tokens of one vocabulary in those of another, by way of the text that they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from draftrank.models.token_bytes import TokenBytes, valid_text, whole_text

LEAD_TOKENS = 8
"""Tokens of the context before a proposed text that the target's tokenizer is shown with it, so that it splits the text as it
would in the middle of a longer one."""


class Translation:
    """Between the tokens of a target and those of a draft, by way of text; a function of its arguments alone.

    The target's special tokens are read in their printed form, which becomes a special token where the draft has one of the
    same form; the one that begins a text is replaced by what the draft's tokenizer begins texts with.
    """

    def __init__(self, target: TokenBytes, draft: TokenBytes) -> None:
        self.target, self.draft = target, draft
        self._opening = draft.opening()
        self._lines: dict[str, list[int]] = {}

    def begin(self) -> None:
        """Another sequence begins; lines of the last one are forgotten."""
        self._lines = {}

    def read(self, context: Sequence[int], *, opens: bool = True) -> list[int]:
        """The target's tokens as the draft's. A character that is not whole yet is spelled byte by byte.

        Args:
            context: the target's ids.
            opens: whether they begin a text.

        Returns:
            the draft's ids; none where its vocabulary has no token to begin with, or none for these bytes.
        """
        text, pending = whole_text(self.target.of(context))
        spelled = self.draft.spelled(pending)
        if spelled is None:
            return []
        found = [*self._encoded(text), *spelled]
        if not opens:
            return found
        first = self.draft.first()
        return [*self._opening, *found] or ([] if first is None else [first])

    def said(self, context: Sequence[int], drafted: Sequence[int]) -> list[int]:
        """What the draft says behind a context, as the target's tokens.

        It ends before the draft's first special token and before a character that is not whole. The target's tokenizer may
        join the text with the end of the context to one token; the context is what it is, so the text is then split alone.

        Returns:
            the target's ids: their bytes are those of the text, or a beginning of it.
        """
        data = self.target.of(context)
        pending = whole_text(data)[1]
        texts = [self.draft.of_token.get(token) for token in drafted]
        end = texts.index(None) if None in texts else len(texts)
        text = valid_text(pending + b"".join(text for text in texts[:end] if text is not None))
        if len(text.encode()) <= len(pending):
            return []
        for lead in (self._lead(context, len(pending)), "\n", ""):
            found = self._behind(lead, text, len(pending))
            if found:
                return found
        return []

    def _encoded(self, text: str) -> list[int]:
        """A text as the draft's tokens, line by line: only the last line is new from step to step. No known tokenizer has
        tokens that go on from a line feed to the letters of the next line."""
        if self.draft.leads_with_space:  # it would do so before every line
            return self.draft.encode(text)
        lines = _lines(text)
        found = [token for line in lines[:-1] for token in self._line(line)]
        return found + (self.draft.encode(lines[-1]) if lines else [])

    def _line(self, line: str) -> list[int]:
        if line not in self._lines:
            self._lines[line] = self.draft.encode(line)
        return self._lines[line]

    def _lead(self, context: Sequence[int], pending: int) -> str:
        """The text of the last tokens, without the `pending` bytes of a character at its end."""
        tail: list[int] = []
        for token in reversed(context[-LEAD_TOKENS:]):
            if token not in self.target.of_token:
                break
            tail.insert(0, token)
        data = self.target.of(tail)
        return data[: max(0, len(data) - pending)].decode(errors="ignore")

    def _behind(self, lead: str, text: str, pending: int) -> list[int]:
        """Tokens of `text` but for its first bytes, as split behind `lead`; none where a token crosses the seam."""
        of_token = self.target.of_token
        wanted = (lead + text).encode()
        seam, at = len(lead.encode()) + pending, 0
        tokens = self.target.encode(lead + text)
        if tokens and of_token.get(tokens[0], b"").startswith(b" ") and not wanted.startswith(b" "):
            at = -1  # a space that the tokenizer puts before every text
        found: list[int] = []
        for token in tokens:
            piece = of_token.get(token)
            if piece is None or wanted[max(at, 0) : at + len(piece)] != piece[max(-at, 0) :]:
                break  # a special token, or the tokenizer has changed the text
            if at >= seam:
                found.append(token)
            elif at + len(piece) > seam:
                return []
            at += len(piece)
        return found


def _lines(text: str) -> list[str]:
    """A text cut behind each run of space with a line feed in it; joined they are the text."""
    found, start = [], 0
    for place in range(1, len(text)):
        if text[place - 1] == "\n" and not text[place].isspace():
            found.append(text[start:place])
            start = place
    if start < len(text):
        found.append(text[start:])
    return found
