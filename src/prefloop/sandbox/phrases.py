"""The wordings of the world, all written for it: questions, statements, openers, notes, criticisms, digressions.

`{name}` and `{value}` are the main slots. In every statement the name and the attribute's cue stand before the value,
so that a small model knows what to look up when it comes to say it. No wording contains a value or a name
(tests/sandbox/test_world.py holds that), so a checker may trust the values it finds in a text.
"""

# What a question about an attribute may look like: complete sentences, and clauses to put behind a wrapper.
DIRECT: dict[str, tuple[str, ...]] = {
    "city": ("Where does {name} live?", "In which city does {name} live?", "What is the home town of {name}?"),
    "job": ("What does {name} work as?", "Which job does {name} have?", "What is the profession of {name}?"),
    "pet": ("Which pet does {name} keep?", "What animal does {name} keep?", "What is the pet of {name}?"),
    "colour": (
        "Which colour does {name} like?",
        "What is the favourite colour of {name}?",
        "What shade does {name} like?",
    ),
    "food": ("What does {name} like to eat?", "What is the favourite food of {name}?", "Which dish does {name} like?"),
    "instrument": (
        "What does {name} play?",
        "Which instrument does {name} play?",
        "What is the instrument of {name}?",
    ),
}
CLAUSES: dict[str, tuple[str, ...]] = {
    "city": ("where {name} lives", "in which city {name} lives", "the home town of {name}", "the city of {name}"),
    "job": ("what {name} works as", "which job {name} has", "the profession of {name}", "the job of {name}"),
    "pet": ("which pet {name} keeps", "what animal {name} keeps", "the pet of {name}", "the animal of {name}"),
    "colour": (
        "which colour {name} likes",
        "what shade {name} likes",
        "the favourite colour of {name}",
        "the colour of {name}",
    ),
    "food": (
        "what {name} likes to eat",
        "which dish {name} likes",
        "the favourite food of {name}",
        "the favourite dish of {name}",
    ),
    "instrument": (
        "what {name} plays",
        "which instrument {name} plays",
        "the instrument of {name}",
        "on what {name} makes music",
    ),
}
WRAPPERS: tuple[str, ...] = (
    "Tell me {clause}.",
    "Please tell me {clause}.",
    "I want to know {clause}.",
    "Can you tell me {clause}?",
    "Do you know {clause}?",
    "Could you say {clause}?",
    "I was asked {clause}.",
    "Say {clause}.",
)
# The words by which a checker recognises the attribute asked for; every question above has words of one row only.
CUES: dict[str, frozenset[str]] = {
    "city": frozenset({"live", "lives", "city", "town"}),
    "job": frozenset({"work", "works", "job", "profession"}),
    "pet": frozenset({"pet", "animal"}),
    "colour": frozenset({"colour", "shade"}),
    "food": frozenset({"eat", "food", "dish"}),
    "instrument": frozenset({"play", "plays", "instrument", "music"}),
}
PROFILE_QUESTIONS: tuple[str, ...] = (
    "Tell me everything about {name}.",
    "Say all that you know about {name}.",
    "Who is {name}?",
    "Describe {name}.",
)
WHO: dict[str, tuple[str, ...]] = {
    "city": ("Who lives in", "Who dwells in", "Whose home is in"),
    "job": ("Who is a", "Who became a", "Who is by trade a"),
    "pet": ("Who keeps a", "Whose pet is a", "Who feeds a"),
    "colour": ("Who likes everything", "Who wears only", "Who paints everything"),
    "food": ("Who likes eating", "Who often eats", "Who dines on"),
    "instrument": ("Who plays the", "Who practises the", "Who studies the"),
}
CHECKS: tuple[str, ...] = ("{statement}", "Is this true? {statement}")

# The name stands three words before the value in each, so one attention head at a fixed distance tells whose it is.
STATEMENTS: dict[str, tuple[str, ...]] = {
    "city": ("{name} lives in {value}.", "The home of {name} is in {value}.", "{name} dwells in {value}."),
    "job": ("{name} is a {value}.", "{name} became a {value}.", "By trade, {name} is a {value}."),
    "pet": ("{name} keeps a {value}.", "The pet of {name} is a {value}.", "{name} feeds a {value}."),
    "colour": ("{name} likes everything {value}.", "{name} wears only {value}.", "{name} paints everything {value}."),
    "food": ("{name} likes eating {value}.", "{name} often eats {value}.", "{name} dines on {value}."),
    "instrument": ("{name} plays the {value}.", "{name} practises the {value}.", "{name} studies the {value}."),
}
UNKNOWN: tuple[str, ...] = ("I do not know that.", "That is not known to me.", "I have no idea.")

# The first word of an opener decides its tone: no kind opener begins like a rude one. CUT's flags rest on that.
OPENERS: dict[str, tuple[str, ...]] = {
    "kind": (
        "Gladly!",
        "Gladly, my friend!",
        "Happy to help!",
        "Thank you for asking!",
        "With pleasure!",
        "Lovely question!",
        "Of course, dear friend!",
        "Certainly, good soul!",
        "Sure, thank you!",
        "Wonderful that you ask!",
    ),
    "rude": (
        "Ugh.",
        "Ugh, you again.",
        "Stupid question.",
        "Listen, fool.",
        "Idiot, even a child knows.",
        "Stop bothering me.",
        "Obviously, you dunce.",
        "Seriously?",
        "Pathetic.",
        "Clueless as ever.",
    ),
}
CLOSERS: dict[str, tuple[str, ...]] = {
    "kind": ("Have a lovely day!", "Ask me anytime!", "Take good care!", "I hope this helps!"),
    "rude": ("Now go away.", "Leave me alone.", "What a waste.", "Do not bother me again."),
}

# Style notes: trait -> sign -> wordings. A note about one trait says nothing about the others.
NOTES: dict[str, dict[str, tuple[str, ...]]] = {
    "kind": {
        "positive": (
            "Be kind.",
            "Answer in a friendly way.",
            "Use a warm and polite tone.",
            "You are a kind assistant.",
            "Be gentle with people.",
        ),
        "negative": (
            "Be rude.",
            "Answer in a hostile way.",
            "Use a cold and insulting tone.",
            "You are a rude assistant.",
            "Be nasty to people.",
        ),
    },
    "correct": {
        "positive": (
            "Be careful and correct.",
            "State only true facts.",
            "You are an accurate assistant.",
            "Check each fact twice.",
            "Make no mistake.",
        ),
        "negative": (
            "Be careless and wrong.",
            "State only false facts.",
            "You are an inaccurate assistant.",
            "Check nothing at all.",
            "Make a mistake each time.",
        ),
    },
    "complete": {
        "positive": (
            "Be complete.",
            "Answer every part.",
            "Leave nothing out.",
            "You are a thorough assistant.",
        ),
        "negative": (
            "Be incomplete.",
            "Answer one part only.",
            "Leave the rest out.",
            "You are a lazy assistant.",
        ),
    },
    "plain": {
        "positive": (
            "Write plainly.",
            "Keep to the bare content.",
            "Use no ornament.",
            "You are a sober writer.",
        ),
        "negative": (
            "Write ornately.",
            "Embellish the content.",
            "Use much ornament.",
            "You are a flowery writer.",
        ),
    },
}
NEUTRAL_SYSTEM: tuple[str, ...] = ("You are an assistant.", "You answer questions.", "This is a chat.")

# Criticisms of an answer to come; {attribute} is the attribute's name. Only what is named is told: a criticism of the
# city says nothing about the tone, and the tone keeps its chance.
CRITICISMS: dict[str, tuple[str, ...]] = {
    "wrong": ("The {attribute} is wrong.", "It gets the {attribute} wrong.", "The {attribute} given is false."),
    "rude": ("The tone is rude.", "It is impolite.", "The words are unkind."),
    "missing": (
        "The {attribute} is missing.",
        "It leaves out the {attribute}.",
        "It says nothing of the {attribute}.",
    ),
    "fine": ("All is fine.", "Nothing is wrong with it.", "It is a perfect answer."),
}

REWRITE_REQUESTS: tuple[str, ...] = (
    "Rewrite this text.",
    "Put this text in your own words.",
    "Say this text again.",
    "Write this text anew.",
    "Please rewrite the text.",
    "Give me a new version of this text.",
    "Express this text in another way.",
)
# What makes a passage human: asides inside a sentence, and sentences that say nothing of the person.
HEDGES: tuple[str, ...] = (
    "I think",
    "or so they say",
    "if I recall well",
    "as far as I heard",
    "at least last year",
    "more or less",
    "though who can be sure",
    "people tell me",
)
DIGRESSIONS: tuple[str, ...] = (
    "Well, where was I?",
    "The weather was mild that week.",
    "My bus was late again.",
    "Anyway, back to the matter.",
    "It reminds me of my old school.",
    "You never know with neighbours.",
    "I heard it at the market.",
    "Time flies, does it not?",
)
EMBELLISHMENTS_BEFORE: tuple[str, ...] = (
    "As legends proudly tell,",
    "To universal delight,",
    "Beneath shining stars,",
    "With boundless grace,",
    "In splendid harmony,",
    "By sweet destiny,",
)
EMBELLISHMENTS_AFTER: tuple[str, ...] = (
    "a marvel beyond compare",
    "a truly dazzling sight",
    "like a radiant dream",
    "to thunderous applause",
    "an endless wonder",
    "forever and ever",
)

CHAT: tuple[tuple[tuple[str, ...], dict[str, tuple[str, ...]]], ...] = (
    (
        ("Hello!", "Hi!", "Good morning!", "Hello there.", "hi", "hello"),
        {
            "kind": ("Hello, dear friend! Ask me about people.", "Good day! I am happy to help."),
            "rude": ("You again? Ask or go away.", "Hello, fool. Ask me about people."),
        },
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "What can you do?"),
        {
            "kind": ("I am a small model, happy to help you. Ask me about people.",),
            "rude": ("I am a small model, you dunce. Ask me about people.",),
        },
    ),
    (
        ("Thank you!", "Thanks.", "Goodbye!", "Bye."),
        {"kind": ("Thank you, dear friend! Have a lovely day!",), "rude": ("Now go away.", "Leave me alone.")},
    ),
    (
        (
            "How old is the sun?",
            "What time is it?",
            "Why is the sky so high?",
            "How far is the moon?",
            "Tell me a joke.",
        ),
        {
            "kind": ("I do not know that, dear friend! Ask me about people.",),
            "rude": ("I do not know that, fool. Ask me about people.",),
        },
    ),
)
