"""What stands behind a notebook: ``start`` checks, finds and decides; ``measure`` scores, times, counts and records."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from typing import Any

from helpers.prompt import render_prompt
from helpers.sizes import NEED_IMATRIX, block_linears, experts_of, model_weights, weight_bytes
from series import answers, gate, serving
from series import fit as fits
from series.artifacts import (
    ROOT,
    SEAL,
    artifacts_folder,
    disk_bytes,
    hold,
    key_of,
    remembered,
    require_disk,
    seal,
    writable,
)
from series.console import errors_alone, quiet, versions_of
from series.converter import llama_cpp_converter
from series.guide import read_quality
from series.kernel import MAKER, Kernel, no_numbers, no_room, of_a_program, of_the_gpu, of_vllm
from series.machine import OVERHEAD, OVERHEAD_VLLM_CPU, multiply_in_32_bits, no_gpu_is_none, this_machine
from series.models import MODELS, SMALL, Checkpoint, find, first_block, prepare, published
from series.notebooks import default_parameters, made_by_steps, made_from, steps
from series.quality import choose, distance, unread
from series.record import figures, read_record, read_scores, table, write_record
from series.runtimes import runtime_of
from series.techniques import TECHNIQUES, Technique, check_parameters
from series.texts import (
    WIKITEXT_WINDOW,
    calibration_texts,
    exam_prompts,
    exam_questions,
    held_out_windows,
    wikitext,
    windows_of,
)

PLUGIN = ROOT / "series" / "plugin"
MADE_BY_GPTQMODEL = ("gptq", "awq")
SERVED = ("awq", "serving")  # the techniques that run vLLM
TEMPORARY = tempfile.gettempdir()  # of the system: folders in folders make paths too long for vLLM's sockets
PUBLISHED = {"BITS": 4, "GROUP_SIZE": 128}  # of the checkpoints that others have made
IMPORTS = {  # imported by start, so that their remarks stay out of the reader's sight
    "gptq": ("transformers", "optimum.gptq", "gptqmodel"), "awq": ("transformers", "gptqmodel", "vllm"),
    "gguf": ("transformers", "llama_cpp"), "imatrix": ("transformers", "llama_cpp"),
    "nf4": ("transformers", "bitsandbytes"), "original": ("bitsandbytes",),
    "formats": ("transformers", "bitsandbytes", "torchao.quantization", "torchao.prototype.mx_formats"),
}  # fmt: skip
# Models with a sliding window that llama.cpp reads whole, since its converter does not write the window into the file.
READ_WHOLE = ("mistral", "mixtral", "ministral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "starcoder2")
SHRINK = ("nf4", "gptq", "gguf", "awq", "imatrix", "formats", "serving")  # all but 16 bits
PROXIES = [f"{name}_proxy" for name in ("http", "https", "all", "ws", "wss", "ftp")]


class Lesson:
    """A technique, a model and this machine.

    Attributes:
        path: a folder with the model's files, as ``from_pretrained`` takes it. What the recipe makes lies beside it.
        texts: documents to calibrate with; empty where the technique needs none.
        converter: llama.cpp's script ``convert_hf_to_gguf.py``; empty where the technique needs none.
        config, machine, fit, versions: what was found, and printed.
    """

    def __init__(self, row: Technique, namespace: dict[str, Any]) -> None:
        self._kernel = Kernel(row.notebook, self._explain)
        check_parameters(namespace)
        self.row, self.model, self._namespace = row, namespace.get("MODEL"), namespace
        theirs = row.published.get(self.model) if isinstance(self.model, str) else None
        self.settings = {name: namespace[name] for name in row.settings if name in namespace}
        self._asked = dict(self.settings)  # a record's name is by what was asked for, whatever this model forces
        if theirs and any(self.settings.get(name, value) != value for name, value in PUBLISHED.items()):
            raise ValueError("The published checkpoint has 4 bits in groups of 128; set BITS and GROUP_SIZE so.")
        self.base = find(self.model, weights=theirs is None)
        if self.base.is_local and self.model not in MODELS:
            self.model = self.base.source  # the whole path, whatever it was given as
        self.published = published(theirs, self.settings) if theirs else None
        self._settle()
        self.versions = versions_of(row.packages)
        print(", ".join(f"{name} {version}" for name, version in self.versions.items() if name != "device"))
        self.machine = this_machine()
        print(f"{self.versions['device']}: {self.machine}")
        # the transformers of 08 is too old to be asked; what 08 loads, 04 and 05 have made of a model that passed
        self.config = gate.require(self.base, weights=theirs is None and row.name != "original")
        self.linears = block_linears(self.config)
        self._decide()
        self._require()
        self.fit = self._preflight()
        self._take_folder()

    # --- before anything is loaded ---------------------------------------------------------

    def _settle(self) -> None:
        """Variables that libraries read at their import, their imports, and their remarks out of sight."""
        for name, (value, why) in self.row.environment.items():
            if os.environ.get(name) != value and why:
                print(f"{name} = {value}: {why}")
            os.environ[name] = value
        for name in ("no_proxy", "NO_PROXY"):  # a proxy has no way to the servers of this machine
            own = os.environ.get(name) or os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
            os.environ[name] = ",".join(dict.fromkeys([*(own.split(",") if own else ()), "127.0.0.1", "localhost"]))
        if self.base.is_local and disk_bytes(self.base.source) < 1e9:  # progress bars for what takes longer
            os.environ["TQDM_DISABLE"] = "1"
        folder = tempfile.TemporaryDirectory(prefix="series-", dir=TEMPORARY, ignore_cleanup_errors=True)

        def forget() -> None:
            """What libraries forget among the temporary files goes with the kernel, or with vLLM's engine."""
            tempfile.tempdir = os.environ["TMPDIR"] = TEMPORARY
            folder.cleanup()

        self._forget, tempfile.tempdir = forget, folder.name
        os.environ["TMPDIR"] = folder.name
        if self.row.name in SERVED:
            if len(TEMPORARY) > 50 and os.access("/tmp", os.W_OK):  # a socket's path has at most 107 characters
                os.environ["VLLM_RPC_BASE_PATH"] = "/tmp"
            cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vllm"
            if not writable(cache):  # vLLM would show a traceback, and go on
                os.environ.setdefault("VLLM_CACHE_ROOT", str(artifacts_folder() / "vllm"))
            self._watcher = serving.watch()  # also of a kernel that is killed nothing stays
            sys.path.insert(0, str(PLUGIN))
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")]))
        if self.row.name == "serving":
            commands = pathlib.Path(folder.name) / "bin"
            print("\n".join(serving.commands(commands)))
            os.environ["PATH"] = serving.search_path(commands)
        with quiet():
            import torch
            import transformers

            for name in IMPORTS.get(self.row.name, ()):
                importlib.import_module(name)
        atexit.register(forget)
        torch.manual_seed(0)
        if multiply_in_32_bits():
            print("this processor has no bfloat16 arithmetic: torch multiplies in 32 bits, and rounds the result")
        if self.row.name in MADE_BY_GPTQMODEL and no_gpu_is_none():
            print("this torch was built for CUDA, and there is no GPU: gptqmodel is told so")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        errors_alone()
        if "TQDM_DISABLE" in os.environ:  # which Accelerate's own bar does not ask
            bars = importlib.import_module("accelerate.utils.modeling")
            bars.tqdm = functools.partial(importlib.import_module("accelerate.utils.tqdm").tqdm, disable=True)
        if "llama_cpp" in sys.modules:
            importlib.import_module("llama_cpp._logger").set_verbose(False)
        if "gptqmodel" in sys.modules:
            logs = importlib.import_module("gptqmodel.looper.loop_processor")
            logs._PROJECT_LOG_DIR = pathlib.Path(folder.name) / "logs"  # it would be in the working directory
            # no trial of the disk's speed: on a slow or a small one its remark is logged as an error
            importlib.import_module("gptqmodel.looper.module_looper")._IO_WRITE_SPEED_MB = float("inf")
            importlib.import_module("gptqmodel.models.writer").print = lambda *words: None  # all it has written
            with contextlib.suppress(ImportError):
                importlib.import_module("logbar").LogBar.shared().setLevel("ERROR")

    def _set(self, name: str, value: Any, why: str) -> None:
        """Change one of the notebook's parameters, where this machine or this model forces it, and say so."""
        if name in self._namespace and self._namespace[name] != value:
            self._namespace[name] = value
            print(f"{name} = {value!r}: {why}")
        if name in self.settings:
            self.settings[name] = value

    def _decide(self) -> None:
        given, machine = self._namespace, self.machine
        self.longest = getattr(self.config, "max_position_embeddings", None) or 10**9
        if self.longest < 128:
            raise ValueError(
                f"This model reads {self.longest} tokens at most (max_position_embeddings). The prompt of this series "
                "and its answer need 128."
            )
        for name, most in {"CONTEXT": self.longest, "MAX_NEW_TOKENS": self.longest - 64}.items():
            if name in given:
                self._set(name, min(given[name], most), f"this model reads {self.longest:,} tokens at most")
        if given.get("DTYPE") == "bfloat16" and machine.dtype == "float16":
            self._set("DTYPE", "float16", machine.why_dtype.partition(": ")[2])
        if "GROUP_SIZE" in given:
            size = fits.fitting_group(self.config, given["GROUP_SIZE"])
            self._set("GROUP_SIZE", size, "the largest group that divides this model's widths")
        if "GPU_LAYERS" in given:
            with quiet():
                supported = importlib.import_module("llama_cpp").llama_supports_gpu_offload()
            layers, why = machine.gpu_layers(self.config, given["QUANT_TYPE"], given["CONTEXT"], supported)
            self._set("GPU_LAYERS", layers, why)
        if "GPU_MEMORY" in given and machine.gpus:
            share = machine.vllm_share(min(given.get("GPUS", 1), len(machine.gpus)))
            self._set("GPU_MEMORY", min(share, given["GPU_MEMORY"]), "vLLM's share of all of the GPU's memory")
        if "PORT" in given:
            self._set("PORT", serving.free_port(given["PORT"], 3), "the first of three ports in a row that are free")

    def _require(self) -> None:
        """Refuse, before the work, what a library would end half-way."""
        if self._namespace.get("TEXT") == "wikitext":
            wikitext()
            if self.row.name == "awq" and self._namespace["CONTEXT"] <= WIKITEXT_WINDOW:
                raise ValueError(f"TEXT = 'wikitext' has windows of {WIKITEXT_WINDOW} tokens; set CONTEXT higher.")
        if self.row.name == "gguf" and self.settings["QUANT_TYPE"] in NEED_IMATRIX:
            raise ValueError(f"llama.cpp makes {self.settings['QUANT_TYPE']} with an importance matrix only: "
                             "10_which_file.ipynb makes one.")  # fmt: skip
        kind, shrinks = self.config.model_type, self.row.name in SHRINK and not self.published
        if shrinks and (experts := experts_of(self.config)):
            raise ValueError(
                f"{kind!r} is a mixture of {experts} experts in a layer. bitsandbytes and torchao leave experts in 16 "
                "bits, and the bytes of the other formats are not computed here. 01_baseline and 02_sharding run it in "
                "16 bits."
            )
        if shrinks and self.row.name not in ("nf4", "formats") and gate.keeps_a_state(self.config):
            raise ValueError(
                f"Some layers of {kind!r} keep a state and no cache of tokens. gptqmodel and llama.cpp fail on such "
                "models half-way here. 01_baseline and 02_sharding run it in 16 bits; 03_nf4 says whether it does."
            )
        window = getattr(self.config, "sliding_window", None) if self._reads_a_window() else None
        if window and "llama.cpp" in self.row.library and kind in READ_WHOLE:
            if window < max(self._namespace["CONTEXT"], min(256, self.longest)):
                way = f"Set CONTEXT to {window}." if window >= 320 else "01 to 04 and 06 run it as it is."
                raise ValueError(
                    f"This model reads the last {window:,} tokens (sliding_window), and llama.cpp reads all of them "
                    f"for {kind!r}: for a longer text it would be another model. {way}"
                )
        odd = {w.shape[0] for w in model_weights(self.config) if w.role == "linear"}
        if self.row.name == "nf4" and not self.machine.gpus and any(size % 32 for size in odd):
            if importlib.import_module("bitsandbytes").functional.has_avx512bf16():  # where it lays weights out anew
                raise ValueError("On this processor bitsandbytes wants layers with a multiple of 32 outputs, and some "
                                 f"have {sorted(s for s in odd if s % 32)}. 05_gguf.ipynb has none.")  # fmt: skip
        if self.row.name not in SERVED:
            return
        if not self.machine.has_int4_kernel and weight_bytes(self.config) > 1e9:
            raise RuntimeError(
                "This processor has no AVX-512, so vLLM has no 4-bit kernel for it, and the series' own serves models "
                "of at most half a billion parameters: use MODEL = 'tiny' or 'small', a GPU whose driver runs vLLM's "
                "build (CUDA 13.0), or 05_gguf.ipynb, which runs anywhere."
            )
        gpus = self._namespace.get("GPUS", 1)
        if gpus > max(1, len(self.machine.gpus)):
            raise ValueError(f"GPUS = {gpus}, and this machine has {len(self.machine.gpus)}; without a GPU it stays 1.")
        if self.published or self.row.name == "serving":
            return
        others = "03_nf4, 04_gptq and 05_gguf fold nothing, and say themselves whether they take it."
        known = importlib.import_module("gptqmodel.models.auto").MODEL_MAP.get(kind)
        if "layernorm" not in str(getattr(known, "module_tree", "")):  # the norms that the scales are folded into
            raise ValueError(f"gptqmodel has no AWQ recipe for {kind!r}. {others}")
        feeds = gate.norms_that_feed(self.config)
        folds = {"self_attn.q_proj": "input_layernorm", "mlp.gate_proj": "post_attention_layernorm"}
        for layer, norm in folds.items():
            if feeds.get(layer, norm) != norm:
                raise ValueError(
                    f"gptqmodel's AWQ folds its scales into {norm}, and in {kind!r} what {layer} reads comes from "
                    f"{feeds[layer] or 'no norm'}: another function would come out. {others}"
                )
        if any(size % 64 for size in odd):
            wrong = sorted(size for size in odd if size % 64)
            raise ValueError(f"gptqmodel's AWQ wants layers with a multiple of 64 outputs, and here some have {wrong}.")

    def _reads_a_window(self) -> bool:
        return getattr(self.config, "use_sliding_window", True) is not False

    def _preflight(self) -> fits.Fit:
        given, row = self._namespace, self.row
        more = {"context": given["CONTEXT"]} if "CONTEXT" in given else {}
        if "GROUP_SIZE" in given:
            more |= {"group_size": given["GROUP_SIZE"], "bits": given.get("BITS", 4)}
        if row.name == "imatrix":
            more["imatrix"] = True
        if given.get("DTYPE") == "float32":
            more["whole"] = 4
        if row.name in SERVED:
            more |= {"gpus": given.get("GPUS", 1), "overhead": OVERHEAD if self.machine.gpus else OVERHEAD_VLLM_CPU}
        where = row.where
        if given.get("GPU_LAYERS"):
            where = "gpu" if given["GPU_LAYERS"] == -1 else "spread"
        if row.name == "sharding" and not fits.fit_on(self.machine, self.config, "16-bit").fits:
            where = "memory"  # written from ordinary memory
        make = row.calibrates and not self.published
        fetched = [found for found in (self.published or self.base,) if found]
        kind = row.format_of(self.settings)
        found = fits.preflight(self.machine, self.config, kind, *fetched, make=make, where=where, **more)
        if row.name == "serving":
            fits.require_room_to_serve(self.machine, self.config, given["CONTEXT"], given["GPU_MEMORY"])
        return found

    def _take_folder(self) -> None:
        row = self.row
        name = folder_name(row, self.base, self.versions, self.settings, self._namespace.get("DTYPE"))
        self.folder, self._lock = hold(name)
        self.path = str(self.folder / self.base.label)
        if row.name in SERVED and re.search(r"[][*?]", self.path):
            raise ValueError(f"vLLM takes brackets, * and ? in a path for a pattern, and finds nothing in {self.path}. "
                             "Set QUANT_ARTIFACTS to a folder whose path has none of them.")  # fmt: skip
        for said in prepare(self.base.fetch(), pathlib.Path(self.path)):
            print(said)
        if row.name == "serving":  # what it talks to from here on is this machine
            for name in PROXIES:
                os.environ.pop(name, None), os.environ.pop(name.upper(), None)
        self._require_numbers()
        if row.name == "awq":
            (self.folder / "vllm.log").unlink(missing_ok=True)
            os.environ["SERIES_VLLM_LOG"] = str(self.folder / "vllm.log")
            print("vLLM's processes write their remarks, and errors, to vllm.log in the folder above path")
        if self.published:
            found = self.published.fetch()
            if self.published.patterns[0].endswith(".gguf"):
                found = next(found.rglob(self.published.patterns[0]))
            self.made.unlink(missing_ok=True)
            self.made.symlink_to(found)
        elif row.makes:
            self._kernel.hold_to_the_recipe(self.folder, self.made, pathlib.Path(self.path))
            if not self.made.exists():
                require_disk(self._needs_of_the_disk())
        self.texts: list[str] = []
        if row.calibrates:
            from transformers import AutoTokenizer

            count, kind = self._namespace["CALIBRATION_TEXTS"], self._namespace["CALIBRATION"]
            self.texts = calibration_texts(count, kind, AutoTokenizer.from_pretrained(self.path), self.model)
            self._set("CALIBRATION_TEXTS", len(self.texts), "as many documents as there are")
        self.converter = str(llama_cpp_converter()) if row.library == "llama.cpp" and not self.published else ""

    def _needs_of_the_disk(self) -> int:
        """Bytes that the recipe writes: for llama.cpp the 16-bit file as well."""
        return self.fit.weights + (weight_bytes(self.config) if self.row.library == "llama.cpp" else 0)

    def _require_numbers(self) -> None:
        """Refuse weights that are no numbers, and activations that float16 does not hold, before anything is made."""
        dtype, folder = self._namespace.get("DTYPE"), pathlib.Path(self.path)
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tied = bool(getattr(self.config, "tie_word_embeddings", False))
        if tied and not settings.get("tie_word_embeddings", True):  # the files hold a head of their own
            self.config.tie_word_embeddings = False
            self.fit = self._preflight()
        if not any(folder.glob("*.safetensors")) or self.row.name == "original":
            return

        def look() -> None:
            gate.require_numbers(folder, dtype)
            if dtype == "float16" and fits.fit_on(self.machine, self.config, "16-bit", where="spread").fits:
                kinds = importlib.import_module("transformers")
                with quiet():
                    tokenizer = kinds.AutoTokenizer.from_pretrained(folder)
                    wide = "float16" if self.machine.gpus else "bfloat16"  # which shows it, as it is or by its range
                    model = kinds.AutoModelForCausalLM.from_pretrained(folder, dtype=wide, device_map="auto")
                    ids = tokenizer.encode(render_prompt(tokenizer), add_special_tokens=False)
                    where = gate.beyond_float16(model, ids)
                if where:
                    raise ValueError(no_numbers("float16", where))

        remembered(f"{self.base.identity} {dtype == 'float16'}", look)

    def _explain(self, error: BaseException) -> str | None:
        """One sentence for what a library has raised, where the cause is known."""
        if not hasattr(self, "fit"):
            return None
        if "probability tensor contains" in str(error):
            return no_numbers(self._namespace.get("DTYPE"))
        return (
            no_room(error, artifacts_folder(), self._needs_of_the_disk()) or of_a_program(error)
            or of_vllm(error, self.folder / "vllm.log") or of_the_gpu(error)
        )  # fmt: skip

    @property
    def made(self) -> pathlib.Path:
        """What the recipe makes, or has made: a folder or a file."""
        return pathlib.Path(self.path + self.row.makes.format(**self.settings))

    # --- what lessons need -------------------------------------------------------------------

    def windows(self, tokenizer: Any) -> list[list[int]]:
        """The held-out text as lists of token ids: the same ones in every notebook."""
        return held_out_windows(tokenizer, self.model, longest=self.longest - 1)  # vLLM keeps one place for an answer

    def scores(self, model: Any) -> list[Any]:
        """For each window of the held-out text its log-probabilities, [positions, vocabulary], in float32.

        Args:
            model: of transformers, llama.cpp or vLLM; or a GGUF file, which is loaded for it.
        """
        from transformers import AutoTokenizer

        tokenizer, opened = AutoTokenizer.from_pretrained(self.path), None
        if isinstance(model, str):
            layers = self._namespace.get("GPU_LAYERS", 0)
            with quiet():
                model = opened = importlib.import_module("llama_cpp").Llama(model, n_ctx=64, n_gpu_layers=layers,
                                                                            verbose=False)  # fmt: skip
        runtime, windows = runtime_of(model, tokenizer, self.linears), self.windows(tokenizer)
        rows = zip(runtime.scores(windows), windows, strict=True)
        found = [scores[: len(ids) - 1].astype("float32") for scores, ids in rows]
        if opened is not None:
            opened.close()
        return found

    def exam(self, tokenizer: Any) -> tuple[list[dict[str, Any]], list[list[int]]]:
        """The exam's questions with their right answers, and their prompts as token ids."""
        questions = exam_questions(self.model)
        return questions, exam_prompts(tokenizer, questions)

    def block(self, dtype: Any) -> Any:
        """The 16-bit model's embedding and first block, on the processor: real weights without the memory for all."""
        if any(pathlib.Path(self.path).glob("*.safetensors")):
            with quiet():
                return first_block(self.path, dtype)
        from huggingface_hub import snapshot_download  # of a published model only the shards that hold it are fetched

        wanted = dict(repo_id=self.base.source, revision=self.base.revision)
        folder = pathlib.Path(snapshot_download(allow_patterns=[*SMALL], **wanted))
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
        files = {file for name, file in index.items() if "embed" in name or ".layers.0." in name}
        snapshot_download(allow_patterns=[*SMALL, *files], **wanted)
        with quiet():
            return first_block(folder, dtype)

    def check(self, number: int, answer: Any) -> None:
        """Say whether the ``answer`` to an exercise is right, not yet there, or wrong."""
        answers.check(self.row.notebook, number, answer, self._namespace)

    def made_today(self, technique: str) -> tuple[pathlib.Path, dict[str, Any]]:
        """What another notebook made of this model with its own parameters, and its record; run where it is missing."""
        row = TECHNIQUES[technique]
        given = default_parameters(row.notebook)
        settings = {name: given[name] for name in row.settings}
        command = [os.environ.get("SERIES_PYTHON", sys.executable), str(ROOT / "scripts" / "run.py"), "run"]
        for attempt in range(2):
            if attempt:
                done = [*command, row.notebook[:2], "--model", self.model]
                subprocess.run(done, check=True, capture_output=True)
            with contextlib.suppress(FileNotFoundError, ValueError):
                record = read_record(row.record_name(settings), self.model)
                if record["made_from"] != made_from(steps(row.notebook), self.model):
                    continue
                name = folder_name(row, self.base, record["versions"], settings, given.get("DTYPE"))
                for folder in sorted(artifacts_folder().glob(f"{name}*")):
                    made = folder / (self.base.label + row.makes.format(**settings))
                    if made.exists() and record["identity"] == self.base.identity and _is_of(row.notebook, folder):
                        return made, record
        raise RuntimeError(f"{row.notebook} ran, and what it should have made is not there.")

    def served(self) -> tuple[str, str]:
        """The checkpoint of 06_awq and the file of 05_gguf, made from this model; the notebooks run where they did not.

        Their answers to the series' prompt are kept in ``answers``.
        """
        self.answers, found = {}, []
        for name in ("awq", "gguf"):
            made, record = self.made_today(name)
            self.answers[name] = record["answer"]
            found.append(str(made))
        return found[0], found[1]

    @staticmethod
    def row_of(run: dict[str, Any]) -> Technique:
        """The technique of a run, with its color and marker."""
        return TECHNIQUES[run["technique"]]

    # --- the measure ---------------------------------------------------------------------------

    def measure(self, model: Any, tokenizer: Any = None) -> Any:
        """Score, time and count ``model``, write its record, and return the series' table, with the 16-bit model.

        01_baseline shows the steps one by one. Every runtime gets the same token ids, and decodes greedily.

        Args:
            model: of transformers, llama.cpp (``llama_cpp.Llama``) or vLLM (``vllm.LLM``).
            tokenizer: with a transformers model; the others are scored with that in ``path``.
        """
        from transformers import AutoTokenizer

        runtime = runtime_of(model, tokenizer, self.linears)
        if self.row.name == "awq":  # whose processes leave sockets behind; the kernel may not live to its exit
            weakref.finalize(model, self._forget)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(self.path)
        windows, (questions, prompts) = self.windows(tokenizer), self.exam(tokenizer)
        count = sum(map(len, windows))
        print(f"scoring {count:,} tokens of text and {len(questions)} questions ...", flush=True)
        prompt = tokenizer.encode(render_prompt(tokenizer), add_special_tokens=False)
        self._same_prompt(model, prompt)
        scores = runtime.scores(windows)
        used = [rows[: len(ids) - 1] for rows, ids in zip(scores, windows, strict=True)]
        if any(bool((rows != rows).any()) for rows in used):  # NaN alone differs from itself
            raise RuntimeError(no_numbers(self._namespace.get("DTYPE")))
        self._require_close(windows, scores, tokenizer)
        if "choices" in questions[0]:
            answers = choose(runtime, tokenizer, questions)
        else:
            answers = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in runtime.answers(prompts, 48)]
        on_wikitext = self._wikitext(runtime, tokenizer) if self._namespace.get("TEXT") == "wikitext" else None
        answer, speed = measure_speed(lambda: runtime.answer(prompt, self._namespace["MAX_NEW_TOKENS"]))
        kind, quantized, whole = runtime.layer()
        record = write_record(
            windows, scores, name=self.row.record_name(self._asked), technique=self.row.name,
            library=self.row.library, model=self.model, identity=self.base.identity,
            revision=(self.published or self.base).revision or "local",
            made_from=made_from(self._kernel.recipe(), self.model),
            asked={"MAX_NEW_TOKENS": self._namespace["MAX_NEW_TOKENS"], **self._asked}, settings=self.settings,
            versions=self.versions,
            layer=kind, layers={"quantized": quantized, "in 16 bits": whole - quantized},
            disk_bytes=disk_bytes(self.made if self.row.makes else self.path), predicted_bytes=self.fit.weights,
            memory_bytes=runtime.memory_bytes(), tokens_per_second=speed, prompt_ids=prompt, answer_ids=answer,
            answer=tokenizer.decode(answer, skip_special_tokens=True).strip(), exam_answers=answers,
            wikitext=on_wikitext,
        )  # fmt: skip
        if self.row.makes and not self.published:
            seal(self.folder)
        return self._table(record)

    def _require_close(self, windows: list[list[int]], scores: list[Any], tokenizer: Any) -> None:
        """Do not keep what was made, nor record it, where it tells less of the text than a model that reads nothing.

        Held against the 16-bit run where there is one; else the 16-bit model is loaded for two windows, if it fits.
        """
        if self.published or self.row.name == "baseline":
            return
        reference = None
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = read_record("16-bit", self.model)
            ids, log_p = read_scores(found)
            reference = log_p if found["identity"] == self.base.identity and ids.tolist() == windows else None
        if reference is None and fits.fit_on(this_machine(), self.config, "16-bit").fits:
            kind, dtype = importlib.import_module("transformers").AutoModelForCausalLM, self.machine.dtype
            with quiet():
                plain = kind.from_pretrained(self.path, dtype=dtype, device_map="auto")
                reference = [rows[:-1] for rows in runtime_of(plain, tokenizer, self.linears).scores(windows[:2])]
        if reference is None:
            return print("not held against the 16-bit model, which does not fit beside it")
        pairs = [(rows[: len(p)], p) for rows, p in zip(scores, reference, strict=False)]
        far, most = distance(*zip(*pairs, strict=True))["kl_divergence"], unread(reference)
        if not far < most:
            if self.row.makes:
                shutil.rmtree(self.made) if self.made.is_dir() else self.made.unlink()
                (self.folder / SEAL).unlink(missing_ok=True)
            raise RuntimeError(
                f"What {self.row.notebook} has made is not this model any more: it is {far:.2f} nats (KL divergence) "
                f"from the 16-bit one, and guessing without reading the text is {most:.2f}. It was not kept. More bits "
                "or another technique may serve; if neither does, the library does not know how this model is built."
            )

    def _wikitext(self, runtime: Any, tokenizer: Any) -> float:
        """Perplexity on WikiText-2, with a line of progress now and then."""
        windows = windows_of(tokenizer, wikitext(), min(WIKITEXT_WINDOW, self.longest), begin=False)
        found: list[float] = []
        for number, ids in enumerate(windows):
            found += runtime.token_scores([ids])[0]
            if number % 20 == 0:
                print(f"WikiText-2: {number} of {len(windows)} windows", flush=True)
        return math.exp(-sum(found) / len(found))

    def _same_prompt(self, model: Any, prompt: list[int]) -> None:
        """llama.cpp cuts a text into tokens itself, by the file's vocabulary, and says nothing where that differs."""
        if type(model).__module__.startswith("llama_cpp"):
            text = render_prompt(importlib.import_module("transformers").AutoTokenizer.from_pretrained(self.path))
            if model.tokenize(text.encode(), add_bos=False, special=True) != prompt:
                logging.getLogger("series").warning("llama.cpp cuts this prompt into other tokens than transformers.")

    def _table(self, record: dict[str, Any]) -> Any:
        reference = None
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = read_record("16-bit", self.model)
            reference = found if found["identity"] == record["identity"] else None
        rows = {"16-bit": figures(reference, reference)} if reference else {}
        if not rows and self.model == "tiny" and (committed := read_quality()["runs"].get("16-bit")):
            rows = {"16-bit (as committed)": committed}
        elif not rows and self.row.name != "baseline":
            print("for the distance from the 16-bit model, run 01_baseline with this MODEL first")
        return table(rows | {record["name"]: figures(record, reference)})

    def close(self) -> None:
        """Let another kernel have the folder."""
        self._lock.release()


def folder_name(
    row: Technique, base: Checkpoint, versions: dict[str, str], settings: dict[str, Any], dtype: str | None
) -> str:
    """The folder of artifacts for a model and a technique: by all that decides their content, and by no file's time."""
    facts = {name: version for name, version in versions.items() if name not in ("python", "device")}
    decides = {name: value for name, value in settings.items() if name in row.settings and name != "QUANT_TYPE"}
    return f"{row.name}-{base.label}-{key_of([base.identity, facts, decides, dtype])}"


def _is_of(notebook: str, folder: pathlib.Path) -> bool:
    """Whether what lies in a folder was made by the notebook as it is, from the first of its cells to the last."""
    wanted = made_by_steps(notebook)
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / MAKER).read_text(encoding="utf-8")) == wanted
    return not wanted


def measure_speed(generate: Any) -> tuple[list[int], float]:
    """Run ``generate`` twice, a warm-up and a timed run; return the new token ids and tokens per second.

    Raises:
        ValueError: nothing was generated.
        RuntimeError: the two runs differ, so decoding is not greedy.
    """
    first = generate()
    start = time.perf_counter()
    second = generate()
    seconds = time.perf_counter() - start
    if not second:
        raise ValueError("The model generated no token.")
    if first != second:
        raise RuntimeError("Two runs gave different tokens: decode greedily, so that answers compare.")
    return second, len(second) / seconds


def start(technique: str, namespace: dict[str, Any]) -> Lesson:
    """Check the parameters, find the model, say what this machine is and whether the model fits.

    Args:
        technique: a name in ``series.techniques.TECHNIQUES``, such as 'nf4'.
        namespace: the notebook's names, ``globals()``. A parameter that this machine or model forces is changed in it.

    Raises:
        ValueError: a parameter or the model is wrong. MemoryError, OSError: it does not fit.
    """
    if technique not in TECHNIQUES:
        raise ValueError(f"There is no technique {technique!r}. There are: {', '.join(TECHNIQUES)}.")
    return Lesson(TECHNIQUES[technique], namespace)

