"""One interface to what runs a model: transformers, llama.cpp and vLLM score, answer and count alike."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol

from helpers.memory import tensor_bytes
from series.console import quiet
from series.quality import log_probabilities, log_softmax
from series.texts import WINDOW_SCORES

BATCH = 100  # answers at once, in transformers


class Runtime(Protocol):
    """What every runtime can do with the model that it has loaded; all tokens are ids."""

    def scores(self, windows: list[list[int]]) -> list[Any]:
        """For each window its log-probabilities in float16, [positions, vocabulary]; row i guesses token i + 1."""

    def token_scores(self, sequences: list[list[int]]) -> list[list[float]]:
        """For each sequence the log-probability of each of its tokens but the first."""

    def answer(self, prompt: list[int], longest: int) -> list[int]:
        """The new tokens of a greedy answer, the one that ends it included; at most ``longest``."""

    def answers(self, prompts: list[list[int]], longest: int) -> list[list[int]]:
        """Those of many prompts, at once where the runtime can."""

    def memory_bytes(self) -> int:
        """Bytes of the weights as they lie in memory."""

    def layer(self) -> tuple[str, int, int]:
        """How a linear layer in the blocks is held, how many of them are quantized, and how many there are."""


class Transformers:
    """A transformers model, whatever its layers are."""

    def __init__(self, model: Any, tokenizer: Any, linears: list[str]) -> None:
        self.model, self.tokenizer, self.linears = model, tokenizer, linears

    def scores(self, windows: list[list[int]]) -> list[Any]:
        import torch

        with torch.no_grad():
            given = (torch.tensor([ids], device=self.model.device) for ids in windows)
            return [log_probabilities(self.model(ids).logits[0]) for ids in given]

    def token_scores(self, sequences: list[list[int]]) -> list[list[float]]:
        import torch

        found: list[list[float]] = []
        longest, vocabulary = max(map(len, sequences)), self.model.config.vocab_size
        size = max(1, WINDOW_SCORES // (longest * vocabulary))
        for start in range(0, len(sequences), size):
            batch = sequences[start : start + size]
            width = max(map(len, batch))  # what stands to the right changes nothing before it
            ids = torch.tensor([s + [0] * (width - len(s)) for s in batch], device=self.model.device)
            with torch.no_grad():
                scores = self.model(ids).logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
            found += [row[: len(s) - 1].tolist() for row, s in zip(scores, batch, strict=True)]
        return found

    def answer(self, prompt: list[int], longest: int) -> list[int]:
        return self.answers([prompt], longest)[0]

    def answers(self, prompts: list[list[int]], longest: int) -> list[list[int]]:
        import torch

        found, pad = [], self.tokenizer.pad_token_id or 0
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            width = max(map(len, batch))
            ids = torch.tensor([[pad] * (width - len(p)) + p for p in batch], device=self.model.device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=self.model.device)
            settings = dict(max_new_tokens=longest, do_sample=False, pad_token_id=pad)
            output = self.model.generate(input_ids=ids, attention_mask=mask, **settings)
            found += [self._until_the_end(row[width:].tolist()) for row in output]
        return found

    def _until_the_end(self, ids: list[int]) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        last = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        return ids[: last + 1]

    def memory_bytes(self) -> int:
        return tensor_bytes(self.model)

    def layer(self) -> tuple[str, int, int]:
        layers = [self.model.get_submodule(name) for name in self.linears]
        packed = [getattr(layer, "weight", None) for layer in layers]  # torchao changes the weight, and not the layer
        kinds = [
            type(weight if hasattr(weight, "__tensor_flatten__") else layer).__name__
            for layer, weight in zip(layers, packed, strict=True)
        ]
        return kinds[0], sum(kind != "Linear" for kind in kinds), len(kinds)


class LlamaCpp:
    """A GGUF file in llama.cpp, by llama-cpp-python."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def read(self, sequences: list[list[int]], reuse: bool = False) -> Iterator[tuple[list[int], int, Any]]:
        """Each sequence, a place in it, and the log-probabilities at that place and all that follow.

        Args:
            reuse: what a sequence has in common with the one before is not read again; else the place is 0.
        """
        from llama_cpp import Llama

        # only an instance that was made for it keeps the logits of every position
        settings = dict(n_ctx=max(map(len, sequences)), n_gpu_layers=self.model.model_params.n_gpu_layers)
        if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():  # else llama.cpp takes all cores
            settings["n_threads_batch"] = int(threads)
        if self.model.lora_path:
            settings |= dict(lora_path=self.model.lora_path, lora_scale=self.model.lora_scale)
        with quiet():
            scorer = Llama(self.model.model_path, **settings, logits_all=True, verbose=False)
            try:
                before: list[int] = []
                for ids in sequences:
                    same = next((i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), len(before))
                    scorer.n_tokens = min(same, len(ids) - 1) if reuse else 0  # where llama.cpp goes on
                    first = max(scorer.n_tokens - 1, 0)  # this place is the same, and the token after it is another
                    scorer.eval(ids[scorer.n_tokens :])
                    yield ids, first, log_softmax(scorer.scores[first : len(ids)])
                    before = ids
            finally:
                scorer.close()

    def scores(self, windows: list[list[int]]) -> list[Any]:
        return [rows.astype("float16") for _, _, rows in self.read(windows)]

    def token_scores(self, sequences: list[list[int]]) -> list[list[float]]:
        found: list[list[float]] = []
        for ids, first, rows in self.read(sequences, reuse=True):
            known = found[-1][:first] if found else []
            found.append(known + [float(row[token]) for row, token in zip(rows, ids[first + 1 :], strict=False)])
        return found

    def answer(self, prompt: list[int], longest: int) -> list[int]:
        import llama_cpp

        vocabulary, found = llama_cpp.llama_model_get_vocab(self.model.model), []
        self.model.reset()  # forget the last run, so that each one does the same work
        for token in self.model.generate(prompt, temp=0.0, repeat_penalty=1.0):
            found.append(token)
            if llama_cpp.llama_vocab_is_eog(vocabulary, token) or len(found) == longest:
                break
        return found

    def answers(self, prompts: list[list[int]], longest: int) -> list[list[int]]:
        return [self.answer(prompt, longest) for prompt in prompts]

    def memory_bytes(self) -> int:
        import llama_cpp

        return llama_cpp.llama_model_size(self.model.model)

    def layer(self) -> tuple[str, int, int]:
        from gguf import GGUFReader

        tensors = GGUFReader(self.model.model_path).tensors
        blocks = [t for t in tensors if t.name.startswith("blk.") and len(t.shape) > 1 and "gate_inp" not in t.name]
        kinds = {t.name: t.tensor_type.name for t in blocks}
        quantized = sum(kind not in ("F32", "F16", "BF16") for kind in kinds.values())
        return next(kind for name, kind in kinds.items() if "ffn_up" in name), quantized, len(kinds)


class Vllm:
    """A checkpoint in vLLM, whose worker processes have loaded ``series/plugin``."""

    def __init__(self, model: Any, linears: list[str]) -> None:
        self.model, self.linears = model, linears

    def scores(self, windows: list[list[int]]) -> list[Any]:
        import numpy as np
        from vllm import SamplingParams

        config = self.model.llm_engine.model_config
        config.max_logprobs = -1  # the engine's limit of what one may ask for
        settings = dict(temperature=0.0, max_tokens=1, prompt_logprobs=-1, flat_logprobs=True, detokenize=False)
        found = []
        for ids in windows:
            output = self.model.generate({"prompt_token_ids": ids}, SamplingParams(**settings), use_tqdm=False)[0]
            flat = output.prompt_logprobs  # every token of the vocabulary at each place, best first
            rows = np.full((len(ids) - 1, config.get_vocab_size()), -np.inf, dtype=np.float16)
            for row, start, end in zip(rows, flat.start_indices[1:], flat.end_indices[1:], strict=True):
                row[flat.token_ids[start:end]] = flat.logprobs[start:end]
            found.append(rows)
        return found

    def token_scores(self, sequences: list[list[int]]) -> list[list[float]]:
        from vllm import SamplingParams

        settings = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self.model.generate([{"prompt_token_ids": s} for s in sequences], settings, use_tqdm=False)
        return [
            [place[token].logprob for token, place in zip(s[1:], output.prompt_logprobs[1:], strict=True)]
            for s, output in zip(sequences, outputs, strict=True)
        ]

    def answer(self, prompt: list[int], longest: int) -> list[int]:
        return self.answers([prompt], longest)[0]

    def answers(self, prompts: list[list[int]], longest: int) -> list[list[int]]:
        from vllm import SamplingParams

        given = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = self.model.generate(given, SamplingParams(temperature=0.0, max_tokens=longest), use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def memory_bytes(self) -> int:
        """Over all GPUs, with the table of cosines and sines that vLLM keeps for the positions."""
        return sum(sum(rank.values()) for rank in self.model.collective_rpc("tensor_bytes"))

    def layer(self) -> tuple[str, int, int]:
        from safetensors import safe_open

        names: set[str] = set()
        for file in pathlib.Path(self.model.llm_engine.model_config.model).glob("*.safetensors"):
            with safe_open(file, framework="np") as opened:
                names |= set(opened.keys())
        kinds = self.model.collective_rpc("linear_classes")[0]
        packed = sum(f"{name}.qweight" in names for name in self.linears)
        kinds = [kind for kind in kinds if not packed or "Unquantized" not in kind]
        return kinds[0], packed, len(self.linears)


def runtime_of(model: Any, tokenizer: Any, linears: list[str]) -> Runtime:
    """The adapter for ``model``; ValueError for what is none of the three."""
    module = type(model).__module__.partition(".")[0]
    if module == "llama_cpp":
        return LlamaCpp(model)
    if module == "vllm":
        return Vllm(model, linears)
    if hasattr(model, "generate") and hasattr(model, "get_submodule"):
        if tokenizer is None:
            raise ValueError("measure needs the tokenizer as well: lesson.measure(model, tokenizer).")
        return Transformers(model, tokenizer, linears)
    raise ValueError(f"measure takes a model of transformers, llama.cpp or vLLM; this is a {type(model).__name__}.")
