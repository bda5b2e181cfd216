"""Tokenizers that cut words and numbers in different ways, trained here, and tiny models that read with them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from interp.config import ModelConfig
from interp.models.gpt import GPT
from interp.tasks import (
    docstring_arguments,
    factual_recall,
    gendered_pronouns,
    indirect_object,
    later_years,
    subject_verb,
)
from interp.tasks.indirect_object import NAMES
from interp.text.tokenizer import Tokenizer


def vocabulary() -> list[str]:
    """Every word that a task may write."""
    texts = [
        *indirect_object.NAMES,
        *(noun for pair in subject_verb.NOUNS.items() for noun in pair),
        *(verb for pair in subject_verb.VERBS.items() for verb in pair),
        *(word for pair in factual_recall.RELATIONS.values() for item in pair[1].items() for word in item),
        *(*gendered_pronouns.WOMEN, *gendered_pronouns.MEN, *gendered_pronouns.WORDS, "he", "she"),
        *(*docstring_arguments.ARGUMENTS, *docstring_arguments.WORDS, *later_years.NOUNS),
        *(*subject_verb.TEMPLATES, *gendered_pronouns.TEMPLATES, *later_years.TEMPLATES, *indirect_object.TEMPLATES),
        *(template for templates, _ in factual_recall.RELATIONS.values() for template in templates),
        *(*indirect_object.PLACES, *indirect_object.OBJECTS, "def self param mod"),
    ]
    return list(dict.fromkeys(re.findall(r"[A-Za-z]+", " ".join(texts))))


def names_tokenizer(words: Iterable[str] = NAMES, *, bos: bool = False) -> Backend:
    """A byte-level tokenizer that has these words, with a space in front, as tokens, and little else."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=9000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
        min_frequency=1,
    )
    backend.train_from_iterator([f" {word}" for word in words], trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return backend


def reader(backend: Backend, *, bos: bool = False) -> GPT:
    """A tiny model that reads with this tokenizer."""
    tokenizer = Tokenizer(backend, bos_token_id=0 if bos else None)
    return GPT(ModelConfig(n_layers=1, d_model=4, d_head=4, n_ctx=256, d_vocab=len(tokenizer), seed=0), tokenizer)


def by_bytes(words: Iterable[str], *, bos: bool = False) -> GPT:
    """Words with a space in front are one token, digits one each."""
    return reader(names_tokenizer(words, bos=bos), bos=bos)


def by_words(words: Iterable[str], digits: str) -> GPT:
    """Words without spaces are one token each, digits as the pattern groups them; the rest is unknown."""
    numbers = [f"{number:0{width}}" for width in (1, 2, 3) for number in range(10**width)]
    vocab = {word: at for at, word in enumerate(dict.fromkeys(["[UNK]", *words, *numbers, *"+=,.()'_:\"“”"]))}
    backend = Backend(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.Split(Regex(r"[^\w]"), "isolated"),
            pre_tokenizers.Split(Regex(digits), "isolated"),
        ]
    )
    return reader(backend)
