"""What stands behind a notebook: ``start`` checks, finds, decides, and takes a folder for what will be made.

What holds for one technique alone stands in its file in ``series/techniques``; this asks it.
"""

from __future__ import annotations

import atexit
import importlib
import pathlib
from typing import Any

from helpers.sizes import block_linears
from series import fit as fits
from series import gate, kernel, made, measure, models, multimodal, prepared, ready, surroundings, techniques
from series.artifacts import artifacts_folder, disk_bytes, hold, remembered, require_disk
from series.console import errors_alone, quiet
from series.machine import this_machine, versions_of
from series.parameters import check_parameters
from series.quirks import transformers as remarks
from series.quirks.torch import multiply_in_32_bits
from series.techniques import TECHNIQUES, Technique
from series.texts import exam_prompts, exam_questions, held_out_windows, wikitext


class Lesson:
    """A technique, a model and this machine.

    Attributes:
        path: a folder with the model's files, as ``from_pretrained`` takes it. What the recipe makes lies beside it.
        texts: documents to calibrate with; empty where the technique needs none.
        converter: llama.cpp's script ``convert_hf_to_gguf.py``; empty where the technique needs none.
        config, machine, fit, versions: what was found, and printed.
        given: the notebook's names; settings: those of its parameters that decide the result.
        ready: what READY names in the place of what the recipe makes; beside: what it names beside that.
        alone: whether nothing of the 16-bit model is needed but its configuration and tokenizer.
        longest: tokens that the model reads at most.
        folder, temporary: for what is made, and for what is gone with the kernel.
    """

    fit: fits.Fit
    _windows: int | None = None  # all of them
    _questions: int | None = None

    def __init__(self, technique: Technique, namespace: dict[str, Any]) -> None:
        self.kernel = kernel.Kernel(technique.notebook, self._explain)
        check_parameters(namespace, techniques.PARAMETERS)
        self.technique, self.model, self.given = technique, models.named(namespace.get("MODEL")), namespace
        theirs = namespace.get("READY") or technique.published.get(self.model, "")
        self.settings = {name: namespace[name] for name in technique.settings if name in namespace}
        self.asked = dict(self.settings)  # a record's name is by what was asked for, whatever this model forces
        texts = [text.strip() for text in theirs.split(",")] if technique.beside else [theirs]
        named = [text for text in texts if text]
        self.alone = bool(technique.spares) and len(named) >= technique.spares
        self.base = models.find(self.model, weights=not self.alone)
        if self.base.is_local and self.model not in models.MODELS:
            self.model = self.base.source  # the whole path, whatever it was given as
        found = [ready.find(text, technique, techniques.LOADS, self.settings) for text in named]
        self.beside = found if technique.beside else []
        self.ready = found[0] if found and not technique.beside else None
        self._settle()
        self.versions = versions_of(technique.packages)
        print(", ".join(f"{name} {version}" for name, version in self.versions.items() if name != "device"))
        self.machine = this_machine()
        print(f"{self.versions['device']}: {self.machine}")
        self.config = gate.require(self.base, not self.alone and technique.reads_weights, techniques.LOADS)
        self.linears = block_linears(self.config)
        self._decide()
        self._require()
        self.fit = self._preflight()
        self._take_folder()

    # --- before anything is loaded ---------------------------------------------------------

    def _settle(self) -> None:
        """Variables that libraries read at their import, their imports, and their remarks out of sight."""
        small = self.base.is_local and disk_bytes(self.base.source) < 1e9
        surroundings.variables(self.technique.environment, bars=not small)
        self.temporary, self.forget = surroundings.temporary_folder()
        self.technique.settle(self)
        with quiet():
            for name in ("torch", "transformers", *self.technique.imports):
                importlib.import_module(name)
        atexit.register(self.forget)
        importlib.import_module("torch").manual_seed(0)
        if multiply_in_32_bits():
            print("this processor has no bfloat16 arithmetic: torch multiplies in 32 bits, and rounds the result")
        remarks.imported()
        errors_alone()
        self.technique.imported(self)

    def set(self, name: str, value: Any, why: str) -> None:
        """Change one of the notebook's parameters, where this machine or this model forces it, and say so."""
        if name in self.given and self.given[name] != value:
            self.given[name] = value
            print(f"{name} = {value!r}: {why}")
        if name in self.settings:
            self.settings[name] = value

    def _decide(self) -> None:
        given, machine = self.given, self.machine
        self.longest = gate.longest(self.config)
        for name, most in {"CONTEXT": self.longest, "MAX_NEW_TOKENS": self.longest - 64}.items():
            if name in given:
                self.set(name, min(given[name], most), f"this model reads {self.longest:,} tokens at most")
        if given.get("DTYPE") == "bfloat16" and machine.dtype == "float16":
            self.set("DTYPE", "float16", machine.why_dtype.partition(": ")[2])
        if "GROUP_SIZE" in given:
            size = fits.fitting_group(self.config, given["GROUP_SIZE"])
            self.set("GROUP_SIZE", size, "the largest group that divides this model's widths")
        self.technique.decide(self)
        if self.ready:
            ready.decide(self.ready, self)

    def _require(self) -> None:
        """Refuse, before the work, what a library would end half-way."""
        if self.given.get("TEXT") == "wikitext":
            wikitext()
        for refuse in self.technique.refuses if not self.ready else ():
            refuse(self.config)
        self.technique.require(self)

    def _preflight(self) -> fits.Fit:
        technique = self.technique
        fetched = [self.ready.checkpoint] if self.ready else [self.base, *(each.checkpoint for each in self.beside)]
        kind, asked = technique.format_of(self.settings), technique.asks(self)
        try:
            found = fits.preflight(self.machine, self.config, kind, *fetched, offers=techniques.offers, **asked)
        except MemoryError as error:
            free = self.machine.gpu.free if self.machine.gpu else self.machine.free
            there = "" if self.ready else ready.on_the_hub(self.base, self.config, free, techniques.LOADS)
            raise MemoryError(f"{error}{there}") from None
        technique.require_room(self)
        return found

    def _take_folder(self) -> None:
        technique = self.technique
        name = made.folder_name(technique, self.base, self.versions, self.asked, self.given.get("DTYPE"))
        self.folder, self._lock = hold(name)
        self.path = str(self.folder / self.base.label)
        technique.require_path(self)
        source = multimodal.text_only(technique.source(self), self.base.identity)
        for said in prepared.prepare(source, pathlib.Path(self.path)):
            print(said)
        self._require_numbers()
        if self.ready:
            ready.take(self.ready, self)
        elif technique.makes:
            self.kernel.hold_to_the_recipe(self.folder, self.made, pathlib.Path(self.path))
            if not self.made.exists():
                require_disk(technique.disk(self))
        self.texts = technique.documents(self)
        self.converter = ""
        technique.ready(self)

    def _require_numbers(self) -> None:
        """Refuse weights that are no numbers, and activations that float16 does not hold, before anything is made."""
        dtype, folder = self.given.get("DTYPE"), pathlib.Path(self.path)
        if gate.head_of_its_own(folder, self.config):
            self.fit = self._preflight()
        if any(folder.glob("*.safetensors")) and self.technique.reads_weights:
            what = f"{self.base.identity} {dtype == 'float16'}"
            remembered(what, lambda: gate.require_numbers(folder, dtype, self.machine, self.config))

    def _explain(self, error: BaseException) -> str | None:
        """One sentence for what a library has raised, where the cause is known."""
        if not hasattr(self, "fit"):
            return None
        if "probability tensor contains" in str(error):
            return kernel.no_numbers(self.given.get("DTYPE"))
        return self.technique.explain(self, error) or kernel.known(error, artifacts_folder(), self.technique.disk(self))

    # --- what the notebooks ask --------------------------------------------------------------

    @property
    def made(self) -> pathlib.Path:
        """What the recipe makes, or has made: a folder or a file."""
        return pathlib.Path(self.path + self.technique.makes.format(**self.settings))

    def windows(self, tokenizer: Any) -> list[list[int]]:
        """The held-out text as lists of token ids: the same ones in every notebook."""
        found = held_out_windows(tokenizer, self.model, longest=self.longest - 1)  # vLLM keeps one place for an answer
        return found[: self._windows]

    def shorten(self, questions: int, windows: int) -> None:
        """Measure on the first questions and windows alone: a trial, whose figures are no one else's."""
        self._questions, self._windows = questions, windows

    def exam(self, tokenizer: Any) -> tuple[list[dict[str, Any]], list[list[int]]]:
        """The exam's questions with their right answers, and their prompts as token ids."""
        questions = exam_questions(self.model)[: self._questions]
        return questions, exam_prompts(tokenizer, questions)

    def block(self, dtype: Any) -> Any:
        """The 16-bit model's embedding and first block, on the processor: real weights without the memory for all."""
        folder = pathlib.Path(self.path if self.technique.makes or not self.ready else self.base.source)
        with quiet():
            return prepared.first_block(folder if any(folder.glob("*.safetensors")) else self.base.first_files(), dtype)

    def scores(self, model: Any) -> list[Any]:
        """For each window of the held-out text its log-probabilities, [positions, vocabulary], in float32.

        Args:
            model: of transformers, llama.cpp or vLLM; or a GGUF file, which is loaded for it.
        """
        return measure.scores(self, model)

    def measure(self, model: Any, tokenizer: Any = None) -> Any:
        """Score, time and count ``model``, write its record, and return the series' table, with the 16-bit model.

        Args:
            model: of transformers, llama.cpp (``llama_cpp.Llama``) or vLLM (``vllm.LLM``).
            tokenizer: with a transformers model; the others are scored with that in ``path``.
        """
        return measure.measure(self, model, tokenizer)

    def check(self, number: int, answer: Any) -> None:
        """Say whether the ``answer`` to an exercise is right, not yet there, or wrong."""
        expected, hint = self.technique.answers[number]
        importlib.import_module("helpers").check(answer, lambda: expected(self.given), hint)

    def made_today(self, technique: str) -> tuple[pathlib.Path, dict[str, Any]]:
        """What another notebook made of this model with its own parameters, and its record; run where it is missing."""
        return made.made_today(TECHNIQUES[technique], self.base, self.model)

    def served(self) -> tuple[str, ...]:
        """An AWQ checkpoint and a GGUF file of this model: of READY, or what 06 and 05 have made.

        Those run where they did not; what they said is in ``answers``.
        """
        files, self.answers = made.served(self)
        return files

    @staticmethod
    def row_of(run: dict[str, Any]) -> Technique:
        """The technique of a run, with its color and marker."""
        return TECHNIQUES[run["technique"]]

    def close(self) -> None:
        """Let another kernel have the folder."""
        self._lock.release()


def start(technique: str, namespace: dict[str, Any]) -> Lesson:
    """As ``series.start`` says."""
    if technique not in TECHNIQUES:
        raise ValueError(f"There is no technique {technique!r}. There are: {', '.join(TECHNIQUES)}.")
    return Lesson(TECHNIQUES[technique], namespace)
