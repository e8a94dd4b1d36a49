"""The one conversation of the series and the string that a model is given for it."""

from __future__ import annotations

from typing import Any

MESSAGES: list[dict[str, str]] = [
    {"role": "system", "content": "You are a friendly chatbot."},
    {"role": "user", "content": "Tell me a funny joke about Large Language Models."},
]
ROLES = ("system", "user", "assistant")


def render_prompt(tokenizer: Any, messages: list[dict[str, str]] | None = None, answer: bool = True) -> str:
    """Render ``messages`` with the tokenizer's own chat template.

    Args:
        tokenizer: a transformers tokenizer with a ``chat_template``.
        messages: dictionaries with ``role`` and ``content``; the series' conversation by default.
        answer: end where the assistant starts to speak.

    Returns:
        The prompt as the chat interface of each runtime sends it: ``tokenizer.encode(prompt,
        add_special_tokens=False)`` gives its token ids.

    Raises:
        ValueError: no chat template or one that fails, no messages, an unknown role, or content that is no string.
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
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"The tokenizer of {name} has no chat template: this looks like a base model. Choose a chat model; its "
            "name often ends in 'chat', 'instruct' or 'it'."
        )
    from jinja2.exceptions import SecurityError

    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer)
    except SecurityError as error:
        raise ValueError(f"The chat template of {name} reaches for what no template needs: {error}") from None
    except Exception as error:  # a template is a program, and may fail in any way
        raise ValueError(f"The chat template of {name} does not take this conversation: {error}") from None
