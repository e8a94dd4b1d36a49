"""What a technique can say of itself. ``series.lesson`` asks; it knows none of them by name.

A technique is one file beside this one, with one subclass of ``Technique`` and one instance of it called ``TECHNIQUE``.
What is not said there is as it is here.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from series.fit import Fit, fit_on
from series.machine import Machine, gb
from series.parameters import Rule
from series.texts import calibration_texts

if TYPE_CHECKING:
    from series.lesson import Lesson

CALIBRATIONS = {"own": "", "unrelated": ", unrelated text", "random": ", random tokens"}
Expected = tuple[Callable[[dict[str, Any]], Any], str]  # the answer, out of the notebook's names, and a hint


class Technique:
    """One way to load or shrink a model.

    Attributes:
        name: as ``start`` knows it.
        notebook: the notebook that teaches it.
        record: what the tables call a run, with its settings filled in; '' where a notebook leaves no record.
        kind: its format, one of ``helpers.sizes.FORMATS``; a setting QUANT_TYPE or FORMAT decides before it.
        library: what runs the model.
        packages: whose versions explain the numbers; the first is what the technique is made by.
        settings: the parameters, beyond MAX_NEW_TOKENS, that decide the result.
        parameters: what those of this notebook alone must be, beyond ``series.parameters.COMMON``.
        where: the memory that must hold the model: 'gpu', 'memory' or 'spread'; see ``series.fit.fit_on``.
        makes: what the recipe writes beside the model, as the end of its name; {} are settings.
        calibrates: whether it looks at text.
        weighs: whether its file is made with an importance matrix.
        is_reference: whether it is what all others are held against.
        refuses: what says why a model's configuration cannot be shrunk so; see ``series.gate``.
        loads: the ``quant_method`` of the checkpoints that READY may be; 'gguf' for a file.
        beside: READY is loaded beside what the recipe makes, and does not stand for it; with a comma it may be several.
        spares: how many ready-made checkpoints it takes until the 16-bit model is not needed; 0: it always is.
        instead: what to say where the 16-bit model does not fit to be quantized.
        reads_weights: whether the notebook reads the model's own weights.
        offered: its formats that are named where a model does not fit in another one.
        published: MODEL -> what READY is, where the notebook has none.
        environment: variables that a library needs before its import, and why; without a reason nothing is printed.
        imports: what ``start`` imports, so that its remarks stay out of the reader's sight.
        answers: of each exercise the expected answer and a hint.
        color, marker: in every figure.
        article: whether it is one of the article's six.
    """

    name: ClassVar[str]
    notebook: ClassVar[str]
    record = ""
    kind = "16-bit"
    library = ""
    packages: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    parameters: ClassVar[dict[str, Rule]] = {}
    where = "gpu"
    makes = ""
    calibrates = weighs = False
    is_reference = False
    refuses: tuple[Callable[[Any], None], ...] = ()
    loads: tuple[str, ...] = ()
    beside = False
    spares = 1
    instead = "To make it takes the 16-bit model; a checkpoint that somebody has made goes to READY, and fits."
    reads_weights = True
    offered: tuple[str, ...] = ()
    published: ClassVar[dict[str, str]] = {}
    environment: ClassVar[dict[str, tuple[str, str]]] = {}
    imports: tuple[str, ...] = ("transformers",)
    answers: ClassVar[dict[int, Expected]] = {}
    color, marker = "black", "o"
    article = False

    def record_name(self, settings: dict[str, Any]) -> str:
        """What the tables call a run with these settings."""
        note = CALIBRATIONS[settings.get("CALIBRATION", "own")]
        size = f", groups of {settings['GROUP_SIZE']}" if settings.get("GROUP_SIZE", 128) != 128 else ""
        ready = f", {settings['READY'].rstrip('/').rpartition('/')[2]}" if settings.get("READY") else ""
        return self.record.format(**settings) + size + note + ready

    def format_of(self, settings: dict[str, Any]) -> str:
        """The format of a run with these settings, one of ``helpers.sizes.FORMATS``."""
        return settings.get("QUANT_TYPE", settings.get("FORMAT", self.kind))

    def ladder(self, model: str) -> list[dict[str, Any]]:
        """Parameters of more runs that 07 compares, beside the one with the notebook's own."""
        return []

    def offers(self, machine: Machine, config: Any) -> list[tuple[str, Fit]]:
        """What to say of each format in ``offered``, and whether a model fits in it."""
        where = "memory" if self.where == "memory" else "gpu"
        made = not self.calibrates or fit_on(machine, config, "16-bit").fits
        found = [fit_on(machine, config, kind, where=where) for kind in self.offered]
        note = "" if made else " with READY"
        return [(f"{fit.kind} ({gb(fit.needed)}, {self.notebook}{note})", fit) for fit in found]

    # --- what ``start`` asks, in this order -----------------------------------------------------

    def settle(self, lesson: Lesson) -> None:
        """Set what its libraries read at their import; none is imported yet."""

    def imported(self, lesson: Lesson) -> None:
        """Mend what its libraries force, once they are imported."""

    def decide(self, lesson: Lesson) -> None:
        """Change a parameter, by ``lesson.set``, where this machine forces it."""

    def require(self, lesson: Lesson) -> None:
        """Refuse a model or a parameter, before the work, that a library would stop at half-way."""

    def asks(self, lesson: Lesson) -> dict[str, Any]:
        """What the fit is asked with, by the notebook's parameters."""
        given = lesson.given
        asked = {"where": self.where, "context": given.get("CONTEXT", 512), "size": None}
        asked["make"] = self.instead if self.calibrates and not lesson.ready else ""
        if lesson.ready:
            asked["size"] = lesson.ready.size
        if "GROUP_SIZE" in given:
            asked |= {"group_size": given["GROUP_SIZE"], "bits": given.get("BITS", 4)}
        if given.get("DTYPE") == "float32":
            asked["whole"] = 4
        return asked | self.room(lesson)

    def room(self, lesson: Lesson) -> dict[str, Any]:
        """Settings of ``series.fit.fit_on`` beyond those that every technique has."""
        return {}

    def require_room(self, lesson: Lesson) -> None:
        """Refuse what fits by ``room`` and still does not."""

    def require_path(self, lesson: Lesson) -> None:
        """Refuse a path that its library does not take."""

    def source(self, lesson: Lesson) -> pathlib.Path:
        """The folder with the model's files, fetched or made."""
        return lesson.base.fetch() if self.makes or not lesson.ready else lesson.ready.fetch()

    def disk(self, lesson: Lesson) -> int:
        """Bytes that the recipe writes."""
        return lesson.fit.weights

    def documents(self, lesson: Lesson) -> list[str]:
        """The texts to calibrate with; none where it looks at none."""
        if not self.calibrates:
            return []
        from transformers import AutoTokenizer

        count, kind = lesson.given["CALIBRATION_TEXTS"], lesson.given["CALIBRATION"]
        texts = calibration_texts(count, kind, AutoTokenizer.from_pretrained(lesson.path), lesson.model)
        lesson.set("CALIBRATION_TEXTS", len(texts), "as many documents as there are")
        return texts

    def ready(self, lesson: Lesson) -> None:
        """The model lies at ``lesson.path``; what is made will lie beside it."""

    # --- what ``measure`` and the kernel ask -----------------------------------------------------

    def loaded(self, lesson: Lesson, model: Any) -> None:
        """The reader has loaded ``model``."""

    def explain(self, lesson: Lesson, error: BaseException) -> str | None:
        """One sentence for an error of its library, where the cause is known."""
        return None
