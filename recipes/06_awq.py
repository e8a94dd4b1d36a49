# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "torch==2.13.0",
#     "transformers==5.19.0",
#     "accelerate==1.15.0",
#     "sentencepiece==0.2.2",
#     "gptqmodel==7.6.0",
#     "vllm==0.32.0",
# ]
# ///
"""6. AWQ: four bits, served. Written by 'make recipes' out of notebooks/06_awq.ipynb, which explains it.

    uv run recipes/06_awq.py --model Qwen/Qwen3-0.6B --prompt "Tell me a joke"

uv installs what is named above: torch in its default build, with CUDA. What is made lies in --out, and is made once.
"""

import argparse
import os
import pathlib
import sys


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a hub id, 'owner/name', or a folder; in 16 bits")
    parser.add_argument("--prompt", default="Tell me a funny joke about Large Language Models.")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="the longest answer")
    parser.add_argument("--out", default="made", help="the folder for what is made")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"], help="the type to compute in")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--gpu-memory", type=float, default=0.85)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--texts", type=int, default=16, help="how many texts it looks at")
    parser.add_argument("--ready", help="what somebody has made of it: a hub id, a folder or a file")
    return parser.parse_args()


def links(model, out, weights=True):
    """The path of a folder in ``out`` that leads to the model's files; what the recipe makes lies beside it."""
    from huggingface_hub import snapshot_download

    folder = pathlib.Path(model).expanduser()
    if not folder.is_dir():
        wanted = ["*.json", "*.jinja", "tokenizer.model", *(["model*.safetensors"] if weights else [])]
        try:
            folder = pathlib.Path(snapshot_download(model, allow_patterns=wanted))
        except Exception as error:
            sys.exit(f"{model} is no folder here, and the hub does not give it: {type(error).__name__}.")
    if weights and not any(folder.glob("*.safetensors")):
        sys.exit(f"{model} has no *.safetensors file.")
    target = pathlib.Path(out).resolve() / model.rstrip("/").rpartition("/")[2]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(folder.resolve())
    return str(target)


def computes_in(wanted):
    """The type to compute in: on a card before compute capability 8.0, such as a T4, 'float16'."""
    import torch

    if wanted == "auto":
        old = torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)
        return "float16" if old else "bfloat16"
    return wanted


def require_room(path, share):
    """End with a sentence where the 16-bit model is larger than all memory that is free."""
    import torch

    needed = share * sum(file.stat().st_size for file in pathlib.Path(path).glob("*.safetensors"))
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free += sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))
    if needed > free:
        sys.exit(f"This takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free.")


def require_gpu():
    """End with a sentence where vLLM's build for GPUs, which uv installs, finds none."""
    from importlib import metadata

    import torch

    if not torch.cuda.is_available() and any(found.name == "vllm" for found in metadata.distributions()):
        sys.exit("vLLM as installed here needs an NVIDIA GPU, and there is none. recipes/05_gguf.py needs none.")


def without_a_gpu():
    """torch's build for CUDA names CUDA as the accelerator also where there is none, and gptqmodel believes it."""
    import torch

    if not torch.cuda.is_available():
        torch.accelerator.current_accelerator = lambda *given, **more: None


def ready(checkpoint, made):
    """Let ``made`` be a checkpoint that somebody has made: a folder or a file, or one of the hub."""
    from huggingface_hub import snapshot_download

    place, made = pathlib.Path(checkpoint).expanduser(), pathlib.Path(made)
    if not place.exists():
        name, _, kind = checkpoint.partition(":")
        try:
            place = pathlib.Path(snapshot_download(name, allow_patterns=[f"*{kind}*.gguf"] if kind else None))
        except Exception as error:
            sys.exit(f"{checkpoint} is not here, and the hub does not give it: {type(error).__name__}.")
        if kind:
            found = sorted(place.glob(f"*{kind}*.gguf"))
            if len(found) != 1:
                sys.exit(f"{checkpoint} has {len(found)} such files: {[file.name for file in found]}. Name one.")
            place = found[0]
    made.parent.mkdir(parents=True, exist_ok=True)
    made.unlink(missing_ok=True)
    made.symlink_to(place.resolve())


# Plain English to calibrate with, of this series (texts/calibrate.txt).
TEXTS = [
    'The kettle was the only thing in the house that was younger than she was. It had a blue light, and it switched itself off, which her sister thought was wasteful. "A kettle should whistle," said her sister. "How else do you know that it wants you?" They drank their tea at the window and watched the postman go past without stopping. It was the third day without a letter, and neither of them mentioned it.',
    'Glass is made from sand, soda and lime. Sand alone melts at more than 1,700 degrees. Soda lowers that to about a thousand, but the glass would dissolve in water, so lime is added to make it hard. The mixture is heated until it flows like honey. For windows it is poured onto a bath of liquid tin, where it spreads by itself and becomes perfectly flat on both sides. Then it is cooled slowly over many hours. Glass that cools too quickly keeps a strain inside and may break weeks later without being touched.',
    'import json\nimport pathlib\n\n\ndef load_settings(path, defaults):\n    """Read settings from a JSON file; what is missing there comes from `defaults`."""\n    file = pathlib.Path(path)\n    if not file.exists():\n        return dict(defaults)\n    found = json.loads(file.read_text(encoding="utf-8"))\n    unknown = set(found) - set(defaults)\n    if unknown:\n        raise KeyError(f"unknown settings: {\', \'.join(sorted(unknown))}")\n    return {**defaults, **found}\n\n\nif __name__ == "__main__":\n    settings = load_settings("settings.json", {"width": 80, "color": True, "language": "en"})\n    print(settings)',
    "Minutes of the gardeners' meeting, 14 April\n\nPresent: eleven members. Absent: Mr Lund, who is moving house.\n\nThe water pump will be repaired before the end of the month. It costs 340 euros, of which the town pays half. Plot 7 is free. Two families have asked for it, and the one that has waited longer will get it. The shed needs a new lock, because too many keys are about. Everybody is reminded that fires are not allowed, not even small ones, and not even with permission from a neighbour. The next meeting is on 12 May at six o'clock, outdoors if it is dry.",
    'A volcano is a hole in the ground with a long memory. The rock that comes out of it may have melted a million years ago, a hundred kilometres below, and waited in a chamber until the pressure was high enough. Whether it flows or explodes depends on two things, how thick the melt is and how much gas it holds. On Hawaii the lava is thin, the gas gets out, and people can walk beside the glowing rivers. At Mount St. Helens it was thick as tar. The gas stayed in until the mountain burst.',
    'He had been a referee for nineteen years, and he had been wrong, by his own count, four hundred and six times. He kept a list. Most of the mistakes were small, a throw-in here, a corner there. Eleven had decided a game. He knew the names of the players, and with three of them he had spoken years later. Each of the three had forgotten it. That was the part that he could not forgive.',
    '| planet | distance from the sun, million km | length of a year | moons that are known |\n|---|---|---|---|\n| Mercury | 58 | 88 days | 0 |\n| Venus | 108 | 225 days | 0 |\n| Earth | 150 | 365 days | 1 |\n| Mars | 228 | 687 days | 2 |\n| Jupiter | 778 | 11.9 years | more than 90 |\n| Saturn | 1,434 | 29.5 years | more than 140 |\n\nThe inner planets are made of rock and metal. The outer ones are mostly gas and ice. Between Mars and Jupiter lies a belt of small bodies that never became a planet, because the gravity of Jupiter kept stirring them.',
    'The word "salary" is often said to come from the salt that Roman soldiers were paid with. There is no ancient text that says so. What is certain is that the Latin word salarium is related to sal, salt, and meant a payment. Perhaps it was money to buy salt, perhaps it was money for keeping a road on which salt was carried. Words remember less than we would like, and what they forget we make up.',
    'To set up the printer, connect the cable and switch it on. Wait until the lamp stops blinking. Load paper with the side to be printed facing down, and push the guide against the edge. Press and hold the round button for five seconds to print a test page. If the page is empty, remove the yellow strip from the cartridge. If the lines are broken, choose "Clean heads" in the menu, and print the page again. Do not clean the heads more than three times in a row. It uses a lot of ink.',
    'The river had been straightened in 1932, to make room for a factory that was never built. For ninety years the water ran through a bed of concrete as straight as a street. Then engineers took out the stones on one side and simply waited. In the first spring the river ate a piece of meadow as large as a tennis court. In the second it left a bank of gravel, and a kingfisher came. The farmer downstream, who had been against it, noticed that his cellar stayed dry in June. He did not say so at the meeting, but he stopped coming to the ones that followed.',
    "SELECT c.name, COUNT(o.id) AS orders, SUM(o.amount) AS total\nFROM customers AS c\nLEFT JOIN orders AS o ON o.customer_id = c.id AND o.placed >= '2024-01-01'\nWHERE c.country = 'PT'\nGROUP BY c.name\nHAVING COUNT(o.id) > 0\nORDER BY total DESC\nLIMIT 10;\n\n-- A left join keeps customers without orders; HAVING drops them again.\n-- With an inner join the last condition would not be needed.",
    'Coffee was first drunk in Yemen, by people who wanted to stay awake for prayer. From there it came to Cairo, to Istanbul and, in the seventeenth century, to Venice and London. The coffee houses of London sold more than coffee. For a penny one got a cup, a seat, the newspapers and an argument. Ship owners met in the house of Edward Lloyd to hear about the weather and the pirates, and to share the risk of a voyage. The insurance market that grew out of it still bears his name.',
    '"Is it broken?" asked the boy.\n\nThe watchmaker held the watch to his ear, then to the boy\'s ear. "What do you hear?"\n\n"Nothing."\n\n"Then it is not broken. A broken watch makes a noise. This one has stopped, and that is a different thing." He opened the back with a knife so thin that it seemed to have no edge. Inside everything was gold and perfectly still, like a town on a Sunday. With a brush of three hairs he touched the smallest wheel. The town woke up.',
    'A good map leaves out nearly everything. The first map of the London Underground showed the lines as they lay under the streets, with long bends and crowded stations in the middle. In 1931 an engineering draftsman called Harry Beck drew it again, in his spare time, with straight lines at angles of 45 and 90 degrees and with stations at even distances. It was wrong about every distance. The company hesitated, printed a few hundred copies, and had to print 750,000 within the year. Under the ground nobody wants to know where he is. He wants to know where to change.',
    'Contents of the first-aid box, to be checked every six months:\n\n- 8 plasters of different sizes\n- 3 sterile dressings, 10 by 10 cm\n- 2 bandages, 6 cm wide\n- 1 triangular cloth\n- 1 roll of adhesive tape\n- 4 pairs of gloves\n- 1 pair of scissors\n- 1 rescue blanket\n- 1 leaflet with the telephone numbers\n\nThings that have passed their date are replaced by the caretaker. Whatever is taken out during the year is written down on the list inside the lid, with a name and the day.',
    'An electric motor is a magnet that chases another magnet and never catches it. In the simplest kind a coil of wire turns between two fixed magnets. When current flows, the coil becomes a magnet itself and turns until its north pole faces the south pole outside. At that very moment a switch on the shaft reverses the current, north becomes south, and the coil has to go on for another half turn. A vacuum cleaner does this six hundred times a second. Take the current away and turn the shaft by hand, and the same machine makes electricity.',
]


def main():
    given = arguments()
    require_gpu()
    without_a_gpu()
    path = links(given.model, given.out, weights=not given.ready)
    MAX_NEW_TOKENS = given.max_new_tokens
    GROUP_SIZE = given.group_size
    CONTEXT = given.context
    GPU_MEMORY = given.gpu_memory
    GPUS = given.gpus
    DTYPE = computes_in(given.dtype)
    if given.ready:
        ready(given.ready, f"{path}-awq")
    else:
        require_room(path, 1)
    texts = TEXTS[: given.texts]

    import os

    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    folder = f"{path}-awq"
    if not os.path.exists(folder):  # made once, under another name until it is complete
        model = GPTQModel.load(path, QuantizeConfig(4, group_size=GROUP_SIZE, sym=False, method="awq"))
        model.quantize(texts, batch_size=len(texts), backend=BACKEND.AWQ_TORCH)  # one batch
        model.save(f"{folder}.part")
        os.rename(f"{folder}.part", folder)
        del model

    from vllm import LLM, SamplingParams

    llm = LLM(folder, tokenizer=path, dtype=DTYPE, max_model_len=CONTEXT, enforce_eager=True,
              gpu_memory_utilization=GPU_MEMORY, tensor_parallel_size=GPUS)  # eager: starts sooner

    messages = [{"role": "system", "content": "You are a friendly chatbot."},
                {"role": "user", "content": given.prompt}]
    settings = SamplingParams(temperature=0.0, max_tokens=MAX_NEW_TOKENS)
    print(llm.chat(messages, settings, use_tqdm=False)[0].outputs[0].text)
    llm.llm_engine.engine_core.shutdown()  # Python would wait for it


if __name__ == "__main__":
    main()
