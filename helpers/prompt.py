"""The one conversation of the series and the string that a model is given for it."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from typing import Any

MESSAGES: list[dict[str, str]] = [
    {"role": "system", "content": "You are a friendly chatbot."},
    {"role": "user", "content": "Tell me a funny joke about Large Language Models."},
]
ROLES = ("system", "user", "assistant")


def render_prompt(tokenizer: Any, messages: list[dict[str, str]] | None = None, chat: bool = True) -> str:
    """Render ``messages`` with the tokenizer's own chat template, ready for the answer.

    Args:
        tokenizer: a transformers tokenizer with a ``chat_template``.
        messages: dictionaries with ``role`` and ``content``; the series' conversation by default.
        chat: False for a base model, which has no template: the contents follow each other as plain text.

    Returns:
        The prompt, ending where the assistant starts to speak. The beginning-of-sequence token is
        not part of it where the tokenizer adds it: each runtime does the same.

    Raises:
        ValueError: no chat template, one that fails, never ends or reaches for what it should not; no messages, an
            unknown role, or content that is no string.
    """
    messages = MESSAGES if messages is None else messages
    if not isinstance(messages, (list, tuple)):
        raise ValueError(f"The messages must be a list of dictionaries, as helpers.MESSAGES is, but are {messages!r}.")
    if not messages:
        raise ValueError("There are no messages. Give at least one, such as helpers.MESSAGES.")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"Message {number} needs the keys 'role' and 'content', but is {message!r}.")
        if message["role"] not in ROLES:
            known = ", ".join(ROLES)
            raise ValueError(f"Message {number} has the unknown role {message['role']!r}. Use one of {known}.")
        if not isinstance(message["content"], str):
            raise ValueError(f"The content of message {number} must be text, but is {message['content']!r}.")
    return render(tokenizer, messages, chat, add_generation_prompt=True)


def render(tokenizer: Any, messages: list[dict[str, str]], chat: bool, add_generation_prompt: bool = False) -> str:
    """The text of ``messages``, without a beginning-of-sequence token that the tokenizer would add once more."""
    if not chat:
        return "".join(message["content"] + "\n\n" for message in messages)
    if not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ValueError(
            f"The tokenizer of {name} has no chat template: this looks like a base model. Choose a chat model (its "
            "name often ends in 'chat', 'instruct' or 'it'), or set CHAT = False for a prompt of plain text."
        )
    _require_an_end(tokenizer.chat_template)
    if messages[0]["role"] == "system" and len(messages) > 1 and not _knows_system(tokenizer):
        first, second, *rest = messages  # Gemma's way: the instruction opens the user's turn
        messages = [{**second, "content": f"{first['content']}\n\n{second['content']}"}, *rest]
    text = _apply(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    begin = getattr(tokenizer, "bos_token", None)
    if begin and text.startswith(begin) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(begin)
    return text


def _apply(tokenizer: Any, messages: list[dict[str, str]], **settings: Any) -> str:
    """``apply_chat_template``, with the template's own errors in a sentence."""
    from jinja2.exceptions import SecurityError, TemplateError

    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    except SecurityError as error:
        raise ValueError(f"The chat template of {name} reaches for what no template needs: {error}") from None
    except TemplateError as error:
        raise ValueError(f"The chat template of {name} does not take this conversation: {error}") from None


def _knows_system(tokenizer: Any) -> bool:
    """Whether the template takes a system message; some raise, by their own words."""
    from jinja2.exceptions import SecurityError, TemplateError

    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    try:
        tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError as error:
        return isinstance(error, SecurityError)  # that is no matter of roles
    return True


# A template is a program out of a checkpoint. jinja's sandbox keeps it from files and objects, and lets it run for
# ever, or ask for all memory; so each one that is not ours is tried once in a process that can be ended.
SECONDS, BYTES = 5, 4_000_000_000
TRIAL = f"""
import json, sys
from transformers.utils.chat_template_utils import render_jinja_template
template, messages = json.load(sys.stdin)
try:
    import resource, signal
    resource.setrlimit(resource.RLIMIT_AS, ({BYTES}, {BYTES}))
    signal.alarm({SECONDS})
except (ImportError, ValueError):
    pass  # Windows: the parent's clock alone
for turns in (messages, messages[1:]):  # some templates refuse a system message
    try:
        render_jinja_template([turns], chat_template=template, add_generation_prompt=True, bos_token="", eos_token="")
    except MemoryError:
        sys.exit(9)
    except Exception:
        pass  # it is heard where the template is used
"""


@functools.cache
def _require_an_end(template: Any) -> None:
    """Raise ValueError for a template that takes seconds or gigabytes; each one is tried once, on MESSAGES."""
    from helpers.models import TINY

    ours = json.loads((TINY / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    if not isinstance(template, str) or template == ours:
        return
    given = json.dumps([template, MESSAGES])
    try:
        done = subprocess.run([sys.executable, "-c", TRIAL], input=given, text=True, capture_output=True, timeout=120)
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        raise ValueError(
            f"The chat template of this model did not end within {SECONDS} seconds and {BYTES // 10**9} GB of memory, "
            "so it is not used. Templates of sound models take milliseconds: choose another model, or set CHAT = False."
        )
