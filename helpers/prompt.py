"""The one conversation of the series and the string that a model is given for it."""

from __future__ import annotations

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
    if messages[0]["role"] == "system" and len(messages) > 1 and not _knows_system(tokenizer):
        first, second, *rest = messages  # Gemma's way: the instruction opens the user's turn
        messages = [{**second, "content": f"{first['content']}\n\n{second['content']}"}, *rest]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    begin = getattr(tokenizer, "bos_token", None)
    if begin and text.startswith(begin) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(begin)
    return text


def _knows_system(tokenizer: Any) -> bool:
    """Whether the template takes a system message; some raise, by their own words."""
    from jinja2.exceptions import TemplateError

    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    try:
        tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:
        return False
    return True
