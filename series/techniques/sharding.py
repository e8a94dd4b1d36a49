"""02: the model in several files, and over several devices, by Accelerate."""

from __future__ import annotations

import pathlib
import re
from typing import TYPE_CHECKING, Any

from series import fit, gate
from series.parameters import whole
from series.techniques.base import Technique

if TYPE_CHECKING:
    from series.lesson import Lesson


def _files(names: dict[str, Any]) -> str:
    return "more" if len(list(pathlib.Path(names["folder"]).glob("*.safetensors"))) > 4 else "four"


def _shards(names: dict[str, Any]) -> list[list[str]]:
    files = [file.name for file in names["files"]]
    layers = range(names["lesson"].config.num_hidden_layers)
    return [sorted({files[number] for number, what, *_ in names["holds"] if what == layer}) for layer in layers]


class Sharding(Technique):
    name, notebook, record = "sharding", "02_sharding", "16-bit, sharded"
    library, packages = "accelerate", ("accelerate", "torch", "transformers", "safetensors")
    settings, makes = ("SHARDS",), "-shards"
    parameters = {"SHARDS": whole(1, 64)}
    article = True
    color = "0.6"
    answers = {
        1: (_files, "A tensor that does not fit any more opens the next file."),
        2: (_shards, "Mind that layer 1 is not layer 10: look for '.layers.1.' with both dots."),
        3: (lambda names: "b", "What lies in ordinary memory travels to the card for each token."),
    }

    def require(self, lesson: Lesson) -> None:
        if any(re.search(r"\.experts\.\d+\.", name) for name in gate.headers(lesson.base)):
            raise ValueError(
                "The files of this mixture hold each expert by itself, and transformers joins them while it loads. "
                "Accelerate's loader takes the files as they are. 01_baseline loads this model, over several devices "
                "too."
            )

    def room(self, lesson: Lesson) -> dict[str, Any]:
        fits = fit.fit_on(lesson.machine, lesson.config, "16-bit").fits
        return {} if fits else {"where": "memory"}  # the shards are written from ordinary memory


TECHNIQUE = Sharding()
