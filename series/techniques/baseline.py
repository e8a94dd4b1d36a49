"""01: the model as it is, in 16 bits, in transformers' pipeline."""

from series.techniques.base import Technique


class Baseline(Technique):
    name, notebook, record = "baseline", "01_baseline", "16-bit"
    library, packages = "transformers", ("transformers", "torch", "accelerate")
    where, offered = "spread", ("16-bit",)
    is_reference = article = True
    color = "0.35"
    answers = {
        1: (lambda names: 14.483464192, "16 bits are 2 bytes."),
        2: (lambda names: 4, "The limit is the bandwidth, divided by the bytes that are read per token."),
    }


TECHNIQUE = Baseline()
