"""The one conversation of the series and the string that a model is given for it."""

from __future__ import annotations

from typing import Any

MESSAGES: list[dict[str, str]] = [
    {"role": "system", "content": "You are a friendly chatbot."},
    {"role": "user", "content": "Tell me a funny joke about Large Language Models."},
]
ROLES = ("system", "user", "assistant")


def render_prompt(tokenizer: Any, messages: list[dict[str, str]] | None = None) -> str:
    """Render ``messages`` with the tokenizer's own chat template, ready for the answer.

    Args:
        tokenizer: a transformers tokenizer with a ``chat_template``.
        messages: dictionaries with ``role`` and ``content``; the series' conversation by default.

    Returns:
        The prompt, ending where the assistant starts to speak. The beginning-of-sequence token is
        not part of it: each runtime adds its own.

    Raises:
        ValueError: no chat template, no messages, an unknown role, or content that is no string.
    """
    messages = MESSAGES if messages is None else messages
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
    if not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ValueError(
            f"The tokenizer of {name} has no chat template: this looks like a base model. "
            "Choose a chat model (its name often ends in 'chat', 'instruct' or 'it')."
        )
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
