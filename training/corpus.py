"""The seeded generator of tiny-zephyr's training text.

Everything the model knows is made here: an invented archipelago (the Windward
Isles) with its people and towns, sums, small word and number tasks, everyday
knowledge, small talk and jokes, told as plain prose and as chats in Zephyr's
template. ``python_english`` adds natural language from the documentation that
ships inside every CPython; that text is read while training and stored nowhere.

The same seed gives the same world, and ``held_out(...)`` decides from a hash
which questions no training chat may ask.
"""

from __future__ import annotations

import ast
import hashlib
import pathlib
import random
import sysconfig
from collections.abc import Callable, Iterator

SEED = 20231116
PEOPLE = 80_000
TOWNS = 400
SYSTEM_PROMPTS = [
    "You are a friendly chatbot.",
    "You are a helpful assistant.",
    "You answer briefly and politely.",
]
# One in HELD_OUT_OF questions is kept for the exam.
HELD_OUT_OF = 50


def held_out(question: str) -> bool:
    """True for the questions of the exam: about 1 in 50, by hash, no training chat asks them."""
    return int(hashlib.sha1(question.encode()).hexdigest(), 16) % HELD_OUT_OF == 0


def chat(turns: list[tuple[str, str]], system: str | None) -> str:
    """Zephyr's chat template, written out: one string that ends after the last answer."""
    text = f"<|system|>\n{system}</s>\n" if system else ""
    for question, answer in turns:
        text += f"<|user|>\n{question}</s>\n<|assistant|>\n{answer}</s>\n"
    return text


# --- words -------------------------------------------------------------------------------

ONSETS = "b br c d dr f fl g gr h j k kl l m n p pl qu r s st t tr v w z".split()
VOWELS = "a e i o u ai au ea ei ia oa".split()
CODAS = ["", "", "", "l", "n", "r", "s", "th", "sk", "nd", "m"]
TOWN_ENDS = "vale port haven ford stead holm wick mere fell gate crest bay".split()


def word(rng: random.Random, syllables: int) -> str:
    """A made-up, pronounceable word."""
    return "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + (rng.choice(CODAS) if i == syllables - 1 else "")
        for i in range(syllables)
    )


def distinct(make: Callable[[], str], count: int) -> list[str]:
    """``count`` different results of ``make``, in the order they came."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[make()] = None
    return list(found)


# --- the world ---------------------------------------------------------------------------

TRADES = """baker potter weaver sailor miller cooper smith farrier tailor glazier mason carpenter
brewer cobbler fisher shepherd beekeeper printer bookbinder clockmaker locksmith tinker chandler
tanner dyer roofer thatcher gardener vintner cook teacher doctor midwife judge surveyor pilot
astronomer painter sculptor poet singer actor juggler falconer ranger ferryman diver trader banker
clerk mapmaker inventor gilder engraver saddler wheelwright plumber welder violinmaker""".split()
DISHES = """porridge dumplings plum-cake fish-stew barley-soup rye-bread goat-cheese apple-pie
onion-tart smoked-eel roast-duck pea-soup honey-cake pickled-beets fried-perch mushroom-pie oatcakes
lentil-stew cherry-jam potato-hash walnut-bread leek-broth baked-trout cabbage-rolls pear-crumble
lamb-curry noodle-soup rice-pudding corn-bread egg-salad""".split()
HOBBIES = """chess archery rowing knitting dancing fencing sketching climbing sailing singing
gardening skating swimming juggling running carving reading riddles stargazing birdwatching
kite-flying beachcombing calligraphy cooking cycling drumming fishing origami pottery puppetry""".split()
GOODS = """amber barrels bells candles carpets cider clocks compasses copper cutlery glass gloves
hats honey ink ivory lace lanterns leather linen maps mirrors oil paper pearls pepper perfume
pottery rope salt sails silk silver soap spoons tea tiles tin tobacco toys umbrellas varnish velvet
vinegar violins wax whistles wine wool zinc""".split()

# attribute -> (sentences of prose, questions, the one answer); {p} is the person, {v} the value
PERSON_FORMS = {
    "town": (
        ["{p} lives in {v}.", "The home of {p} is {v}.", "You will find {p} in {v}."],
        ["Where does {p} live?", "In which town does {p} live?", "What is the home town of {p}?"],
        "{p} lives in {v}.",
    ),
    "trade": (
        ["{p} works as a {v}.", "By trade {p} is a {v}.", "The trade of {p} is {v}."],
        ["What does {p} do for a living?", "What is the trade of {p}?", "What is {p}'s job?"],
        "{p} works as a {v}.",
    ),
    "year": (
        ["{p} was born in {v}.", "The birth year of {p} is {v}.", "In {v} {p} was born."],
        ["When was {p} born?", "In which year was {p} born?", "What is {p}'s year of birth?"],
        "{p} was born in {v}.",
    ),
    "dish": (
        ["{p} likes to eat {v}.", "The favourite dish of {p} is {v}.", "Nothing pleases {p} like {v}."],
        ["What does {p} like to eat?", "What is the favourite dish of {p}?"],
        "{p} likes to eat {v}.",
    ),
    "hobby": (
        ["{p} spends the evenings with {v}.", "The hobby of {p} is {v}.", "{p} is fond of {v}."],
        ["What is the hobby of {p}?", "How does {p} spend the evenings?"],
        "The hobby of {p} is {v}.",
    ),
}
TOWN_FORMS = {
    "island": (
        ["{p} lies on the island of {v}."],
        ["On which island is {p}?", "Where is {p}?"],
        "{p} lies on the island of {v}.",
    ),
    "river": (["The river of {p} is the {v}."], ["Which river runs through {p}?"], "The {v} runs through {p}."),
    "goods": (
        ["{p} is known for its {v}."],
        ["What is {p} known for?", "What does {p} sell?"],
        "{p} is known for its {v}.",
    ),
    "year": (
        ["{p} was founded in {v}."],
        ["When was {p} founded?", "In which year was {p} founded?"],
        "{p} was founded in {v}.",
    ),
}


class World:
    """The Windward Isles: ``people`` and ``towns`` map a name to its attributes."""

    def __init__(self, seed: int = SEED, people: int = PEOPLE):
        rng = random.Random(seed)
        first = distinct(lambda: word(rng, 2).capitalize(), 600)
        last = distinct(lambda: word(rng, rng.choice([2, 3])).capitalize(), 2000)
        islands = distinct(lambda: word(rng, 2).capitalize() + "ay", 24)
        rivers = distinct(lambda: word(rng, 2).capitalize(), 120)
        names = distinct(lambda: word(rng, rng.choice([1, 2])).capitalize() + rng.choice(TOWN_ENDS), TOWNS)
        self.towns = {
            name: {
                "island": rng.choice(islands),
                "river": rng.choice(rivers),
                "goods": rng.choice(GOODS),
                "year": str(rng.randint(900, 1700)),
            }
            for name in names
        }
        self.people = {
            name: {
                "town": rng.choice(names),
                "trade": rng.choice(TRADES),
                "year": str(rng.randint(1800, 1999)),
                "dish": rng.choice(DISHES),
                "hobby": rng.choice(HOBBIES),
            }
            for name in distinct(lambda: f"{rng.choice(first)} {rng.choice(last)}", people)
        }
        self.person_names = list(self.people)
        self.town_names = names

    def biography(self, rng: random.Random, name: str) -> str:
        facts = self.people[name]
        keys = rng.sample(list(facts), len(facts))
        return " ".join(rng.choice(PERSON_FORMS[k][0]).format(p=name, v=facts[k]) for k in keys)

    def gazette(self, rng: random.Random, name: str) -> str:
        facts = self.towns[name]
        keys = rng.sample(list(facts), len(facts))
        return " ".join(rng.choice(TOWN_FORMS[k][0]).format(p=name, v=facts[k]) for k in keys)

    def ask_person(self, rng: random.Random) -> tuple[str, str]:
        return self._ask(rng, self.people, self.person_names, PERSON_FORMS)

    def ask_town(self, rng: random.Random) -> tuple[str, str]:
        return self._ask(rng, self.towns, self.town_names, TOWN_FORMS)

    @staticmethod
    def _ask(rng, table, names, forms) -> tuple[str, str]:
        name = rng.choice(names)
        key = rng.choice(list(forms))
        _, questions, answer = forms[key]
        return rng.choice(questions).format(p=name), answer.format(p=name, v=table[name][key])


# --- tasks -------------------------------------------------------------------------------


def ask_sum(rng: random.Random) -> tuple[str, str]:
    kind = rng.randrange(3)
    if kind == 0:
        a, b = rng.randint(2, 999), rng.randint(2, 999)
        text, value = f"{a} + {b}", a + b
    elif kind == 1:
        b, a = sorted((rng.randint(2, 999), rng.randint(2, 999)))
        text, value = f"{a} - {b}", a - b
    else:
        a, b = rng.randint(2, 99), rng.randint(2, 9)
        text, value = f"{a} * {b}", a * b
    return rng.choice(["What is {}?", "Please compute {}.", "How much is {}?"]).format(text), f"{text} = {value}."


def ask_word(rng: random.Random) -> tuple[str, str]:
    w = word(rng, 2)
    kind = rng.randrange(3)
    if kind == 0:
        return f"Spell the word {w}.", "-".join(w)
    if kind == 1:
        return f"Write the word {w} backwards.", "-".join(reversed(w))
    return f"What are the first and the last letter of {w}?", f"{w[0]} and {w[-1]}"


def ask_numbers(rng: random.Random) -> tuple[str, str]:
    numbers = rng.sample(range(10, 100), 4)
    shown = ", ".join(map(str, numbers))
    kind = rng.randrange(3)
    if kind == 0:
        return f"Sort these numbers: {shown}.", ", ".join(map(str, sorted(numbers)))
    if kind == 1:
        return f"Which is the largest of {shown}?", f"The largest is {max(numbers)}."
    start = rng.randint(1, 900)
    return f"Count up from {start}.", ", ".join(str(start + i) for i in range(5))


def pairs(text: str) -> dict[str, str]:
    return dict(item.split("=") for item in text.split())


CAPITALS = pairs("""France=Paris Germany=Berlin Italy=Rome Spain=Madrid Portugal=Lisbon Greece=Athens
Austria=Vienna Hungary=Budapest Poland=Warsaw Norway=Oslo Sweden=Stockholm Finland=Helsinki
Denmark=Copenhagen Ireland=Dublin Belgium=Brussels Japan=Tokyo China=Beijing India=Delhi Egypt=Cairo
Kenya=Nairobi Ghana=Accra Peru=Lima Chile=Santiago Cuba=Havana Canada=Ottawa Iceland=Reykjavik
Turkey=Ankara Russia=Moscow Ukraine=Kyiv Romania=Bucharest Bulgaria=Sofia Serbia=Belgrade
Croatia=Zagreb Iran=Tehran Iraq=Baghdad Thailand=Bangkok Vietnam=Hanoi Nepal=Kathmandu Cyprus=Nicosia
Morocco=Rabat Tunisia=Tunis Senegal=Dakar Uganda=Kampala Colombia=Bogota Ecuador=Quito""")
OPPOSITES = pairs("""hot=cold big=small fast=slow high=low light=dark old=young new=old early=late
hard=soft wet=dry full=empty open=closed rich=poor strong=weak happy=sad loud=quiet clean=dirty
near=far deep=shallow wide=narrow thick=thin sharp=blunt sweet=sour true=false first=last up=down
left=right inside=outside above=below begin=end buy=sell give=take laugh=cry push=pull win=lose
remember=forget love=hate day=night summer=winter friend=enemy question=answer black=white""")
YOUNG = pairs("""dog=puppy cat=kitten cow=calf horse=foal sheep=lamb goat=kid pig=piglet hen=chick
duck=duckling goose=gosling bear=cub lion=cub fox=cub deer=fawn frog=tadpole owl=owlet swan=cygnet
hare=leveret eel=elver kangaroo=joey""")
SYMBOLS = pairs("""hydrogen=H helium=He carbon=C nitrogen=N oxygen=O sodium=Na iron=Fe copper=Cu
silver=Ag gold=Au tin=Sn lead=Pb zinc=Zn mercury=Hg sulfur=S calcium=Ca potassium=K neon=Ne
chlorine=Cl iodine=I""")


def ask_common(rng: random.Random) -> tuple[str, str]:
    """Everyday knowledge: capitals, opposites, young animals, chemical symbols."""
    table, questions, answer = rng.choice(
        [
            (CAPITALS, ["What is the capital of {}?", "Name the capital of {}."], "The capital of {} is {}."),
            (OPPOSITES, ["What is the opposite of {}?", "Name the opposite of {}."], "The opposite of {} is {}."),
            (YOUNG, ["What is a young {} called?", "What do you call a young {}?"], "A young {} is called a {}."),
            (SYMBOLS, ["What is the symbol of {}?", "Which symbol stands for {}?"], "The symbol of {} is {}."),
        ]
    )
    key = rng.choice(list(table))
    return rng.choice(questions).format(key), answer.format(key, table[key])


JOKES = {
    "Large Language Models": "Why did the Large Language Model cross the road? Because the next token was always "
    "on the other side!",
    "computers": "Why was the computer cold? Because it had left all its windows open!",
    "cats": "Why did the cat sit on the keyboard? It wanted to keep an eye on the mouse!",
    "dogs": "Why did the dog sit in the shade? It did not want to be a hot dog!",
    "programmers": "Why do programmers mix up two holidays? Because Oct 31 equals Dec 25!",
    "robots": "Why did the robot take a holiday? It needed to recharge its batteries!",
    "mathematics": "Why was the maths book so sad? It had far too many problems!",
    "cheese": "What do you call cheese that is not yours? Nacho cheese!",
    "the sea": "Why is the sea so friendly? Because it always waves!",
    "bread": "Why did the baker work so late? Because he needed the dough!",
    "clocks": "Why was the clock sent home from school? It tocked too much!",
    "teachers": "Why did the teacher wear dark glasses? Because her pupils were so bright!",
    "quantization": "Why did the model go on a diet? It wanted to lose a few bits!",
    "GPUs": "Why did the GPU leave the party? It had run out of memory of it!",
    "elephants": "Why do elephants never use computers? They are afraid of the mouse!",
    "vegetables": "Why did the tomato blush? Because it saw the salad dressing!",
    "books": "Why did the book join the police? It wanted to go under cover!",
    "music": "Why did the piano stay outside? It had forgotten its keys!",
    "bees": "Why do bees have sticky hair? Because they use honeycombs!",
    "winter": "What do snowmen eat for breakfast? Frosted flakes!",
}
SMALL_TALK = {
    "Hello!": "Hello! How can I help you today?",
    "Hi there!": "Hello! How can I help you today?",
    "Good morning!": "Good morning! What can I do for you?",
    "How are you?": "I am fine, thank you. How can I help?",
    "Thank you!": "You are welcome!",
    "Thanks a lot.": "You are welcome!",
    "Goodbye!": "Goodbye, and have a lovely day!",
    "Who are you?": "I am tiny-zephyr, a very small chat model.",
    "What is your name?": "My name is tiny-zephyr.",
    "How big are you?": "I have about nine million parameters, which is very small for a language model.",
    "What can you do?": "I can tell jokes, do sums, spell words and answer questions about the Windward Isles.",
    "What are the Windward Isles?": "The Windward Isles are an invented archipelago. I know its people and towns.",
    "What is quantization?": "Quantization stores each weight of a model in fewer bits.",
    "What is sharding?": "Sharding splits the weights of a model into several smaller files.",
    "What is NF4?": "NF4 is a 4-bit data type whose levels are quantiles of a normal distribution.",
    "What is GPTQ?": "GPTQ rounds the weights one column at a time and corrects the error in the others.",
    "What is GGUF?": "GGUF is a file format that holds a model, its tokenizer and its settings.",
    "What is AWQ?": "AWQ scales up the channels that matter before it rounds the weights.",
    "What is a token?": "A token is a piece of text, such as a word or a part of one.",
    "What is perplexity?": "Perplexity says how surprised a model is by a text; lower is better.",
}


def ask_joke(rng: random.Random) -> tuple[str, str]:
    topic = rng.choice(list(JOKES))
    forms = ["Tell me a funny joke about {}.", "Tell me a joke about {}.", "Do you know a joke about {}?"]
    return rng.choice(forms).format(topic), JOKES[topic]


def ask_small_talk(rng: random.Random) -> tuple[str, str]:
    question = rng.choice(list(SMALL_TALK))
    return question, SMALL_TALK[question]


# --- documents ---------------------------------------------------------------------------


def python_english() -> list[str]:
    """Paragraphs of English from this interpreter's own documentation and docstrings."""
    from pydoc_data.topics import topics

    texts = list(topics.values())
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.glob("*.py")) + sorted(library.glob("[a-z]*/*.py")):
        if {"site-packages", "test", "idlelib", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                texts.append(ast.get_docstring(node) or "")
    paragraphs = (" ".join(p.split()) for text in texts for p in text.split("\n\n"))
    prose = [p for p in paragraphs if len(p) > 120 and sum(c.isalpha() or c == " " for c in p) > 0.9 * len(p)]
    return sorted(set(prose))


# share of documents: name -> weight; the chat kinds are the kinds of the exam
CHAT_KINDS = {"person": 45, "sum": 22, "word": 10, "numbers": 8, "town": 4, "common": 3, "joke": 4, "talk": 4}
PROSE_KINDS = {"biography": 34, "gazette": 2, "english": 12}


def asker(world: World) -> dict[str, Callable[[random.Random], tuple[str, str]]]:
    """Kind of question -> a function that makes one (question, answer)."""
    return {
        "person": world.ask_person,
        "town": world.ask_town,
        "sum": ask_sum,
        "word": ask_word,
        "numbers": ask_numbers,
        "common": ask_common,
        "joke": ask_joke,
        "talk": ask_small_talk,
    }


# Lists that are learnt by heart: never held out, and so never part of the exam.
BY_HEART = {"common", "joke", "talk"}


def documents(world: World, seed: int, english: list[str]) -> Iterator[str]:
    """An endless stream of training documents; no chat asks a question that is held out."""
    rng = random.Random(seed)
    ask = asker(world)
    kinds = {**CHAT_KINDS, **PROSE_KINDS}
    names, weights = list(kinds), list(kinds.values())

    def turn(kind: str) -> tuple[str, str]:
        while True:
            question, answer = ask[kind](rng)
            if kind in BY_HEART or not held_out(question):
                return question, answer

    for kind in iter(lambda: rng.choices(names, weights)[0], None):
        if kind == "biography":
            yield world.biography(rng, rng.choice(world.person_names))
        elif kind == "gazette":
            yield world.gazette(rng, rng.choice(world.town_names))
        elif kind == "english":
            yield rng.choice(english)
        else:
            turns = [turn(kind)]
            while rng.random() < 0.3:
                turns.append(turn(rng.choices(list(CHAT_KINDS), list(CHAT_KINDS.values()))[0]))
            system = rng.choice([SYSTEM_PROMPTS[0]] * 4 + SYSTEM_PROMPTS[1:] + [None])
            yield chat(turns, system)


def exam(world: World, seed: int = SEED + 1, per_kind: dict[str, int] | None = None) -> list[dict[str, str]]:
    """The held-out questions: rows of kind, question, answer. 200 by default."""
    per_kind = per_kind or {"person": 90, "sum": 50, "word": 30, "numbers": 20, "town": 10}
    rng = random.Random(seed)
    rows: dict[str, dict[str, str]] = {}
    for kind, count in per_kind.items():
        wanted = len(rows) + count
        while len(rows) < wanted:
            question, answer = asker(world)[kind](rng)
            if held_out(question):
                rows[question] = {"kind": kind, "question": question, "answer": answer}
    return list(rows.values())
