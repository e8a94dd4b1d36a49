"""08: the libraries that the article used in 2023, in an environment of their own."""

from series.techniques.base import Technique


class Original(Technique):
    name, notebook = "original", "08_original_stack"
    library = "transformers 4.45"
    packages = ("transformers", "torch", "optimum", "auto-gptq", "ctransformers", "bitsandbytes")
    # Its transformers is too old to be asked; what it loads, 04 and 05 have made of a model that passed.
    reads_weights = False
    imports = ("transformers", "bitsandbytes")
    answers = {
        1: (lambda names: [0x88888888, 0x12345678, 0xFFFFFFFF], "Add one to each of the eight hexadecimal digits."),
        2: (lambda names: "checkpoint_format", "One of the three was changed between 2023 and now."),
    }


TECHNIQUE = Original()
