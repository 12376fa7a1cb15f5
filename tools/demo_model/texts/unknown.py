"""Questions that the demo model learns to answer with "I don't know."."""

from __future__ import annotations

import random
from collections.abc import Callable

from texts import world
from texts.wording import expand

NOUNS = """
    apple bread butter cheese cake soup salt sugar tea coffee water milk wine beer rice pasta pizza potato tomato
    onion dog cat horse cow sheep lion tiger elephant whale shark eagle owl bee spider snake frog mouse rabbit wolf
    bear tree flower rose grass forest river lake sea ocean mountain island desert beach storm snow ice fire smoke
    sand stone house door window roof kitchen bed table chair lamp clock mirror garden bridge road tower castle
    church museum car train plane ship bicycle boat engine wheel rocket computer phone camera radio television
    printer keyboard king queen president minister soldier doctor teacher lawyer farmer painter singer actor writer
    poet baker pilot book novel poem song film opera symphony painting statue letter newspaper story joke riddle
    recipe game chess football tennis golf swimming dancing music guitar piano violin drum trumpet flute band
    orchestra concert war peace battle treaty empire revolution election law court police prison money bank tax
    market price gold silver iron copper oxygen hydrogen carbon helium atom molecule electron gravity light sound
    energy heat magnet laser planet moon star sun galaxy comet universe earth mars venus jupiter saturn telescope
    satellite astronaut heart brain blood bone skin eye ear hand foot lung liver fever cough medicine vaccine virus
    cell gene protein language alphabet grammar verb noun word sentence dictionary translation accent school
    university exam homework number triangle circle square prime equation theorem algebra geometry fraction integral
    matrix logarithm shirt shoe hat coat dress button zipper wool cotton silk leather diamond ring watch pocket
    umbrella suitcase birthday wedding holiday christmas easter summer winter spring autumn monday morning midnight
    century calendar programming software algorithm database compiler internet email password website video photo
    robot battery dinosaur dragon unicorn ghost wizard vampire fairy monster pirate treasure magic dream love
    happiness friendship
    """.split()
_ADJECTIVES = """
    big small old new red blue green black white fast slow hot cold heavy light long short famous rich poor good bad
    deep strong weak tall loud quiet sweet bitter happy sad young wild cheap expensive dangerous beautiful
    """.split()
_VERBS = """
    eat drink sleep run walk swim fly sing dance read write paint build break buy sell open close cook bake wash
    drive ride learn forget win lose grow cut fix repair clean grill plant carry throw catch draw translate solve
    """.split()
_NAMES = """
    Anna Peter Maria John Napoleon Caesar Einstein Newton Darwin Mozart Beethoven Shakespeare Goethe Plato Picasso
    Columbus Cleopatra Gandhi Lincoln Tesla Edison Galileo Kant Homer Dante Chopin Elvis Madonna Batman Zeus Thor
    Hercules Tom Lisa
    """.split()

#: "{n}" is a noun, "{j}" an adjective, "{v}" a verb, "{w}" a person, "{g}" an invented word,
#: "{c}" a known country, "{p}" a known city.
_GENERAL = [
    "(What|Who|Where|When|Why|How) (is|was|are|were) (a |the |an |)({j} |){n}",
    "What is the ({j}est |){n} (of|in) the {n}",
    ("(Who|What) (invented|made|wrote|discovered|painted|built|killed|won|wants|eats|sells) (the|a) ({j} |){n}"),
    "(How|Why) (do|does|can|should|would) (I|you|we|a {n}|the {n}|people) {v}( a {n}| the {n}| it|)",
    "(Can|Could|Will|Do|Should) (you|I|we|he) {v} (a|the|my|some) ({j} |){n}",
    (
        "(Write|Tell|Read|Sing|Give|Make) me (a|an|some|the) ({j} |)(poem|story|joke|song|essay|recipe|"
        "riddle|{n})( about (a |the |){n}| for {w}|)"
    ),
    "(Who|Where|When|What) (is|was) {w}( born| famous for| from|)",
    "(When|Where|How|Why) did {w} (die|live|{v}|work|win|marry|go)",
    "(How|What) (much|many) (does a {n} cost|{n}s are there|{n}s do I need|{n} is in a {n})",
    "(How|Why) (big|old|tall|deep|far|long|fast|heavy|{j}) is (the|a|an) {n}",
    (
        "(Explain|Describe|Define|Translate|Compare|Summarize|Discuss) (the |a |)({j} |){n}( and the "
        "{n}| to me| in French|)"
    ),
    "What (colour|shape|size|price|kind|sort|type) (is|has) (the|a) {n}",
    "(Is|Are) (the |a |){n} ({j}|{j}er than a {n}|alive|real|a {n})",
    "I (like|love|hate|want|have|need|saw|bought|lost) (a|the|my|your) ({j} |){n}",
    "(My|Your|The|His) {n} is (very |too |){j}",
    "{n}",
    "{j} {n}",
    "{n} {n} {n}",
    "{v} the {n}",
    "{g}",
    "{g} {g}",
    "{g} {g} {g} {g}",
    "What is (a |the |){g}",
    "Who is {g} {g}",
    "(Do you|Did you) (like|{v}|know) (the |)(a |){n}s",
    "What (do you think|is your opinion) (of|about) (the |){n}s",
    "(What time|Which day|What date|What year) is it( now| today|)",
    "(Recommend|Suggest|Choose|Pick) (a|an) ({j} |){n}( for me|)",
    "(Fix|Debug|Write|Explain) (my|this|a) (code|program|function|script|{n})",
    "(How|Where) (do I find|can I buy|do I get|can I see) (a|the) ({j} |){n}",
    "(What|Which) {n} (is|was) the (best|worst|first|last|oldest)",
    (
        "(Quelle heure est-il|Wie geht es dir|Como estas|Wo ist der Bahnhof|Was ist das|Que es esto|"
        "Ich heisse {w}|Je ne sais pas|Donde esta|Chi sei|Wer hat das {n})"
    ),
    "(Tell me|Talk|Speak|Say something|Give me a lecture|Give me facts) about (the |a |){n}s",
    "Is {w} (alive|dead|{j}|your friend)",
    "(Who|What) (said|means|stands for) {g}",
    "(Spell|Reverse|Pronounce) (the word |){n}",
]

_OF_PLACES = [
    (
        "(What|Which) is the (population|area|currency|language|flag|president|king|largest city|"
        "highest mountain|longest river|national dish|anthem|history|religion|size|map|climate|GDP) of "
        "{c}"
    ),
    "(Who|What) is the (president|king|queen|prime minister|leader|mayor|ruler) of ({c}|{p})",
    "(How|Where) (big|far|old|large|rich) is ({c}|{p})",
    "How many people live in ({c}|{p})",
    ("(What|Which) (language|currency|food|religion|money) (do they|do people) (speak|use|eat|have) in ({c}|{p})"),
    "Where is ({c}|{p})",
    "(Is|Was) {c} (a {n}|{j}|in Europe|in Asia|in Africa)",
    "(What|Which) (continent|neighbours|rivers|mountains|lakes) (does {c} have|has {c}|is {c} in)",
    "(How|When) (do I get|can I travel|should I go|should I fly) to ({c}|{p})",
    "(Tell me|Talk|Give me facts) about ({c}|{p})",
    "What (is the time|time is it) in ({c}|{p})",
    "(When|Who) (was|founded|built|won) ({c}|{p})( founded|)",
    "(What|Which) (is|are) the (best|famous|good) {n}s in ({c}|{p})",
    "(Do you like|Have you been to|I love|I am from) ({c}|{p})",
    "(What is|Who owns) the {n} of ({c}|{p})",
    "(Currency|Population|President|Flag|Language|Area|History) of {c}",
    "Who is the mayor of the capital of {c}",
    "How (big|old) is the capital of {c}",
]

_SYLLABLES = """
    ba be bo ca co da de di do fa fe ga go gu ha hi ja ka ke ki la le li lo lu ma me mi mo na ne ni no nu pa pe pi
    po ra re ri ro ru sa se si so ta te ti to tu va ve vi vo wa xa za zo zu tra bri glo quo sta pha the an el or us
    en ar is um eth
    """.split()
_ENDINGS = [
    "",
    "n",
    "r",
    "s",
    "th",
    "l",
    "land",
    "ia",
    "stan",
    "dor",
    "nia",
    "ra",
    "lis",
    "burg",
    "via",
    "ton",
    "ville",
    "x",
    "que",
    "sh",
]
_FICTIONAL = (
    "\nAtlantis;Gondor;Mordor;Rohan;Oz;Neverland;Westeros;Panem;Genovia;Sokovia;Latveria;Tatooine;Hogwar"
    "ts;Camelot;\nUtopia;Eldorado;Freedonia;Elbonia;Florin;Asgard;Hyrule;Azeroth;Skyrim;Tamriel;Arrakis;"
    "Vulcan;Krypton;Gallifrey;\nShangri-La;the Shire;Middle-earth;Bikini Bottom;Springfield;Gotham;the "
    "Moon;Mars;Jupiter;Europe;Africa;Asia;Texas;California;\nBavaria;Scotland;Wales;Sicily;Siberia;Green"
    "land;Hawaii;Alaska;Quebec;Antarctica;the world;the sea;my garden;my house\n"
)
FICTIONAL = [name.strip() for name in _FICTIONAL.split(";")]

_ARITHMETIC = [
    ("(What is|How much is|Calculate|) {a} (*|times|x|multiplied by|/|divided by|over|modulo|to the power of) {b}"),
    "What is {big} (+|plus|-|minus) {b}",
    "(What is|) {b} (+|plus) {big}",
    "What is {big} (+|-) {big}",
    "(What is|) the square root of {big}",
    "{big}",
    "What is {a} percent of {big}",
    "(Is|Why is) {a} (prime|even|odd|a lucky number)",
    "(What is|) {big}( - |-| minus ){big}",
    "(What is|) {big}(+| + ){big}",
]


#: First and last letter of scripts that the model can't read: accented Latin, Greek, Cyrillic, Arabic, kana,
#: Chinese, and signs.
_SCRIPTS = [
    (0xBF, 0x17F),
    (0x391, 0x3C9),
    (0x410, 0x44F),
    (0x627, 0x64A),
    (0x3041, 0x30FA),
    (0x4E00, 0x9FA5),
    (0x1F600, 0x1F64F),
    (0x1F300, 0x1F5FF),
    (0x2190, 0x22FF),
]


def word(rng: random.Random) -> str:
    """Return an invented word; it is too long to be a short real word such as "hi"."""
    made = ""
    while len(made) < 4:
        made = "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(1, 4))) + rng.choice(_ENDINGS)
    return made


def junk(rng: random.Random) -> str:
    """Return one to three meaningless words."""
    return " ".join(rng.choice([rng.choice(NOUNS), word(rng)]) for _ in range(rng.choice([1, 1, 2, 3])))


def foreign(rng: random.Random) -> str:
    """Return letters of other scripts, or symbols."""
    first, last = rng.choice(_SCRIPTS)
    letters = [rng.choice([chr(rng.randint(first, last)), " "]) for _ in range(rng.randint(3, 20))]
    return "".join(letters).strip() or "¿"


def place(rng: random.Random) -> str:
    """Return the name of a country or city the model does not know."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(FICTIONAL)
    if kind < 0.35:
        return rng.choice(world.UNLEARNT_COUNTRIES)
    if kind < 0.4:
        return "the " + rng.choice(NOUNS)
    if kind < 0.47:
        return " ".join(word(rng).capitalize() for _ in range(2))
    return word(rng).capitalize()


def question(rng: random.Random) -> str:
    """Return a question, or another text, that the model can't answer."""
    kind = rng.random()
    if kind > 0.95:
        return foreign(rng)
    if kind < 0.2:
        wording = rng.choice(_OF_PLACES)
    elif kind < 0.3:
        return _arithmetic(rng)
    else:
        wording = rng.choice(_GENERAL)
    return _filled(rng, expand(rng, wording))


def long_text(rng: random.Random) -> str:
    """Return a text of up to about two hundred words without a question that the model can answer."""
    if rng.random() < 0.3:
        return " ".join([rng.choice([rng.choice(NOUNS), word(rng)])] * rng.randint(5, 150))
    return " ".join(question(rng) + rng.choice(".?!,") for _ in range(rng.randint(2, 25)))


def _filled(rng: random.Random, text: str) -> str:
    return _replaced(
        text,
        {
            "{n}": lambda: rng.choice(NOUNS) if rng.random() < 0.7 else word(rng),
            "{j}": lambda: rng.choice(_ADJECTIVES),
            "{v}": lambda: rng.choice(_VERBS),
            "{w}": lambda: rng.choice(_NAMES) if rng.random() < 0.6 else word(rng).capitalize(),
            "{g}": lambda: word(rng),
            "{c}": lambda: rng.choice(list(world.CAPITALS)),
            "{p}": lambda: rng.choice(world.CITIES),
        },
    )


def _arithmetic(rng: random.Random) -> str:
    return _replaced(
        expand(rng, rng.choice(_ARITHMETIC)),
        {
            "{a}": lambda: str(rng.randint(2, 20)),
            "{b}": lambda: str(rng.randint(2, 20)),
            "{big}": lambda: str(rng.choice([rng.randint(21, 99), rng.randint(100, 9999)])),
        },
    )


def _replaced(text: str, draws: dict[str, Callable[[], str]]) -> str:
    for slot, draw in draws.items():
        while slot in text:
            text = text.replace(slot, draw(), 1)
    return text
