"""The tokenizer: every word of the world is one token, everything else falls to its bytes, so any text round-trips."""

from collections import Counter
from itertools import islice
from typing import Any

from prefloop.sandbox.corpus import MAIN, conversations
from prefloop.sandbox.world import ATTRIBUTES, NAMES

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

SAMPLE = 20_000  # conversations counted for the vocabulary
RAREST = 3  # a word seen less often than this falls to its bytes


def build_tokenizer(seed: int = 0) -> Any:
    """A fast tokenizer for the world: byte-level words, no merges, chat template, exactly one BOS (the template's).

    `ignore_merges` takes a whole word where the vocabulary has it and its bytes where it does not, so no text is
    unknown. Names and values are in it with and without the space before them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    counts: Counter[str] = Counter()
    for messages in islice(conversations(seed, MAIN), SAMPLE):
        for message in messages:
            counts.update(piece for piece, _ in splitter.pre_tokenize_str(message["content"]))
    world = [prefix + word for word in (*NAMES, *sum(ATTRIBUTES.values(), ())) for prefix in ("Ġ", "")]
    common = sorted(piece for piece, count in counts.items() if count >= RAREST)
    specials = [PAD, BOS, EOS, *ROLES]
    pieces = dict.fromkeys([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *world, *common])
    model = models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
