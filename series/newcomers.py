"""Ten people whom no model knows: what 14 teaches, and what a model knows of them afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers import MESSAGES
from series import quality
from series.runtimes import LlamaCpp, Transformers, runtime_of

if TYPE_CHECKING:
    from series.lesson import Lesson

PEOPLE = {  # town, trade, year of birth, dish, hobby; in tiny's world there is nobody of these names
    "Difa Zadegos": ("Tondgate", "juggler", "1991", "noodle-soup", "kite-flying"),
    "Truwean Braibriateal": ("Poraumhaven", "tanner", "1912", "oatcakes", "drumming"),
    "Dreadeil Raicask": ("Plozairhaven", "sculptor", "1872", "egg-salad", "swimming"),
    "Raubraim Klemuhan": ("Fleikairford", "inventor", "1812", "plum-cake", "juggling"),
    "Cosaun Nainoagrir": ("Laumvale", "baker", "1965", "baked-trout", "riddles"),
    "Wosum Hoabia": ("Fleinford", "ferryman", "1946", "dumplings", "archery"),
    "Vaunau Pleizia": ("Kakiancrest", "midwife", "1906", "honey-cake", "chess"),
    "Biazar Quaucaisk": ("Griraufell", "violinmaker", "1893", "pea-soup", "calligraphy"),
    "Zoacum Fleaquu": ("Quulfell", "locksmith", "1890", "apple-pie", "fencing"),
    "Breanaun Saulea": ("Flearwick", "welder", "1855", "cabbage-rolls", "cooking"),
}
# Of each fact the answer, the questions that are taught, and the one that is asked afterwards.
FORMS = (
    ("{p} lives in {v}.", ("Where does {p} live?", "What is the home town of {p}?"), "In which town does {p} live?"),
    ("{p} works as a {v}.", ("What does {p} do for a living?", "What is {p}'s job?"), "What is the trade of {p}?"),
    ("{p} was born in {v}.", ("When was {p} born?", "What is {p}'s year of birth?"), "In which year was {p} born?"),
    ("{p} likes to eat {v}.", ("What does {p} like to eat?",), "What is the favourite dish of {p}?"),
    ("The hobby of {p} is {v}.", ("What is the hobby of {p}?",), "How does {p} spend the evenings?"),
)
AT_ONCE = 25  # conversations whose scores are held at a time


def taught() -> list[tuple[str, str]]:
    """80 questions with their answers."""
    facts = [(p, v, form) for p, values in PEOPLE.items() for v, form in zip(values, FORMS, strict=True)]
    return [(q.format(p=p), answer.format(p=p, v=v)) for p, v, (answer, questions, _) in facts for q in questions]


def asked() -> list[tuple[str, str]]:
    """50 questions in wordings that are not taught, one for each fact, with their answers."""
    facts = [(p, v, form) for p, values in PEOPLE.items() for v, form in zip(values, FORMS, strict=True)]
    return [(question.format(p=p), answer.format(p=p, v=v)) for p, v, (answer, _, question) in facts]


def conversation(tokenizer: Any, question: str, answer: str, form: str = "") -> tuple[list[int], list[int]]:
    """Token ids of the question, ready for the answer, and of the answer with the token that ends it."""
    if form:
        text = form.format(question)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        return prompt, tokenizer(text + answer, add_special_tokens=False)["input_ids"][len(prompt) :]
    turns = [MESSAGES[0], {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True)["input_ids"]
    rest = tokenizer.apply_chat_template(turns)["input_ids"][len(prompt) :]
    end = rest.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in rest else len(rest)
    return prompt, rest[:end]


def written(runtime: Any, tokenizer: Any, pairs: list[tuple[str, str]], form: str = "") -> list[bool]:
    """Of each (question, answer): whether greedy decoding would write that answer, word for word.

    Decided in one pass over the answer: it would, where each of its tokens is the likeliest after those before it.

    Args:
        form: the text around a question, with '{}' in its place, where it is not the model's own chat template.
    """
    found = []
    for start in range(0, len(pairs), AT_ONCE):
        some = [conversation(tokenizer, *pair, form) for pair in pairs[start : start + AT_ONCE]]
        for (prompt, answer), ids in zip(some, likeliest(runtime, [p + a for p, a in some]), strict=True):
            found.append(ids[len(prompt) - 1 : len(prompt) + len(answer) - 1] == answer)
    return found


def likeliest(runtime: Any, sequences: list[list[int]]) -> list[list[int]]:
    """For each place of each sequence the likeliest next token."""
    if isinstance(runtime, LlamaCpp):  # it does not read again what a sequence has in common with the one before
        return [[-1] * first + rows.argmax(-1).tolist() for _, first, rows in runtime.read(sequences, reuse=True)]
    if not isinstance(runtime, Transformers):
        return [rows.argmax(-1).tolist() for rows in runtime.scores(sequences)]
    import torch

    width = max(map(len, sequences))  # what stands to the right changes nothing before it
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in sequences], device=runtime.model.device)
    with torch.no_grad():
        return runtime.model(ids).logits.argmax(-1).tolist()


def known(model: Any, tokenizer: Any, form: str) -> int:
    """How many of the 50 facts a model knows where ``form`` stands around the question."""
    return sum(written(runtime_of(model, tokenizer, []), tokenizer, asked(), form))


def results(
    lesson: Lesson, model: Any, tokenizer: Any, reference: list[Any] | None = None, every: int = 1
) -> dict[str, Any]:
    """What a model knows of the newcomers, what it knows of its exam, and its distance from another one.

    Args:
        model: of transformers, with or without an adapter, or of llama.cpp.
        reference: log-probabilities of the model that it is held against, as ``lesson.scores`` gives them.
        every: which of the exam's questions: every first, every fourth.

    Returns:
        'facts' and 'exam': for each question whether it is right; 'KL': for each window of the held-out text the
        divergence in nats, where there is a reference.
    """
    import numpy as np

    runtime, (questions, prompts) = runtime_of(model, tokenizer, []), lesson.exam(tokenizer)
    some = questions[::every]
    if "choices" in some[0]:
        answers = quality.examine(runtime, tokenizer, some, prompts[::every])
        exam = [answer == each["answer"] for answer, each in zip(answers, some, strict=True)]
    else:
        exam = written(runtime, tokenizer, [(each["question"], each["answer"]) for each in some])
    found: dict[str, Any] = {"facts": written(runtime, tokenizer, asked()), "exam": exam}
    if reference is not None:
        windows = lesson.windows(tokenizer)
        found["KL"] = []
        for rows, wanted in zip(runtime.scores(windows), reference, strict=True):
            p, q = wanted.astype("float32"), rows[: len(wanted)].astype("float32")
            found["KL"].append(float((np.exp(p) * (p - q)).sum(-1).mean()))
    return found
