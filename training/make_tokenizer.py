"""Train tiny-zephyr's tokenizer: a Llama-style BPE of 2,048 pieces with byte fallback.

    python training/make_tokenizer.py

Writes ``tokenizer.model`` (SentencePiece, which llama.cpp's converter reads), ``tokenizer.json``
(the same pieces and merges for transformers and vLLM) and ``tokenizer_config.json`` with Zephyr's
chat template into ``models/tiny-zephyr``.
"""

from __future__ import annotations

import itertools
import json
import pathlib

import sentencepiece as spm
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

import corpus

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "models" / "tiny-zephyr"
VOCABULARY = 2048
SPECIAL = ["<unk>", "<s>", "</s>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def sentences(count: int = 200_000):
    """The documents' lines without the template's end marker, which is a token of its own."""
    english = corpus.python_english()
    stream = corpus.documents(corpus.World(), corpus.SEED, english)
    for document in itertools.islice(stream, count):
        yield from document.replace("</s>", "").split("\n")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    spm.SentencePieceTrainer.train(
        sentence_iterator=sentences(),
        model_prefix=str(FOLDER / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=0.9999,
        num_threads=2,
        minloglevel=2,
    )
    (FOLDER / "tokenizer.vocab").unlink()

    pieces = spm.SentencePieceProcessor(model_file=str(FOLDER / "tokenizer.model"))
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    # SentencePiece joins the pair whose result has the best score; the same order as merge ranks:
    # every split of a piece into two pieces, best result first.
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(vocab, key=lambda p: -pieces.get_score(vocab[p]))
        if not pieces.is_byte(vocab[piece]) and piece not in SPECIAL
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    fast = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    # As in Zephyr's own file: a space before each stretch of text, then spaces made visible.
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    fast.save(str(FOLDER / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
