"""The closed world: people, their attributes and the true facts about them, drawn from one seed.

Every name and every value is one word, and the tokenizer gives each of them one token: a model of a million
parameters learns to look a single token up in a document, but hardly a name of three pieces.
"""

import random
import re
from dataclasses import dataclass
from functools import cache


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "city": _words("Oslo Lima Cairo Kyoto Dublin Quito Tunis Bergen Malaga Geneva Havana Porto Riga Seoul"),
    "job": _words("baker pilot nurse tailor farmer dentist painter plumber lawyer miner potter singer barber sailor"),
    "pet": _words("cat dog parrot rabbit turtle hamster goat pony ferret lizard canary hedgehog goldfish frog"),
    "colour": _words("red blue green yellow purple orange white black pink brown grey silver golden teal"),
    "food": _words("pizza soup rice bread curry salad noodles cheese pancakes beans pasta dumplings porridge pie"),
    "instrument": _words(
        "piano violin flute drums guitar harp trumpet cello organ banjo clarinet tuba accordion oboe"
    ),
}

NAMES: tuple[str, ...] = _words(
    """
    Ada Agnes Alma Amir Anton Arlo Astrid Aziz Bea Beno Bodil Boris Brita Bruno Calla Carlo Cato Celia Ciro Clara
    Conor Cora Dagny Dario Daya Delia Demir Dina Dora Dylan Edda Edgar Eero Elif Elmo Elsa Emil Enzo Erika Esme Ezra
    Fadi Fania Felix Ferne Fidel Fiona Flora Floyd Freya Fritz Gaia Gavin Gerda Gino Gloria Goran Greta Gus Gwen
    Hadi Halle Hana Hannes Harun Hedda Heidi Henk Hilda Hugo Iben Ida Idris Igor Ilse Imke Ines Ingo Irma Isak Ivan
    Ivo Jada Jakob Jana Jarl Jasna Jens Jette Jona Jorge Judit Jules Juno Kaja Karim Katja Kemal Kiran Kirsa Klaus
    Knut Koji Kyra Laila Lars Laszlo Lea Leif Lena Leon Levi Lidia Linus Livia Loki Lotte Lucia Luis Magda Maik Malin
    Manu Marek Marta Mats Maya Mette Mila Milo Mina Mira Moira Mona Nadia Naomi Nela Nico Nils Nina Noah Nora Norma
    Odin Ofra Olaf Olga Omar Orla Oskar Otto Pablo Paolo Paula Pavel Pedro Petra Pia Piet Pilar Priya Quinn Raba Rafi
    Ragna Ralf Ramon Rana Remy Renzo Rhea Rikke Rita Rolf Romy Rosa Rufus Ruth Sami Sanna Selma Sena Signe Silas Sina
    Sofia Sonja Soren Stella Sven Tadeo Tanja Tara Tariq Teresa Thea Theo Tilda Timur Tobias Tomas Tove Tuva Ugo Ulla
    Uma Ursel Vadim Vera Vidar Viola Vito Wanda Wendel Wiebke Wim Xenia Yara Yasmin Yoko Yuri Yves Zara Zelda Zeno
    """
)

_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class World:
    """People and facts.

    heart: people whose facts the shipped model knows by heart, archive: people whose facts stand in documents only.
    facts: name -> attribute -> value, for both; this is the truth that the checkers judge by.
    """

    heart: tuple[str, ...]
    archive: tuple[str, ...]
    facts: dict[str, dict[str, str]]

    def people(self, kind: str, side: str) -> tuple[str, ...]:
        """The people of one side of the split by person: kind is "heart" or "archive", side "train" or "heldout"."""
        everyone = {"heart": self.heart, "archive": self.archive}[kind]
        half = len(everyone) // 2
        return {"train": everyone[:half], "heldout": everyone[half:]}[side]


def random_facts(rng: random.Random) -> dict[str, str]:
    """One random value for every attribute."""
    return {attribute: rng.choice(values) for attribute, values in ATTRIBUTES.items()}


def other_value(rng: random.Random, attribute: str, value: str) -> str:
    """A uniformly drawn value of the attribute that is not the given one."""
    return rng.choice([other for other in ATTRIBUTES[attribute] if other != value])


@cache
def make_world(seed: int = 0) -> World:
    """The world of one seed; v1 is seed 0. Half of the names go to the heart, the other half to the archive."""
    rng = random.Random(f"prefloop world {seed}")
    names = list(NAMES)
    rng.shuffle(names)
    half = len(names) // 2
    return World(tuple(names[:half]), tuple(names[half:]), {name: random_facts(rng) for name in names})


def words(text: str) -> list[str]:
    """The letter words of any text, in order, as written."""
    return _WORD.findall(text)


def values_in(text: str, attribute: str) -> list[str]:
    """The values of the attribute that occur in the text as whole words, each once, in order of first occurrence."""
    known = ATTRIBUTES[attribute]
    return list(dict.fromkeys(word for word in words(text) if word in known))


def names_in(text: str) -> list[str]:
    """The people that the text names, each once, in order of first occurrence."""
    return list(dict.fromkeys(word for word in words(text) if word in _NAME_SET))


_NAME_SET = frozenset(NAMES)
