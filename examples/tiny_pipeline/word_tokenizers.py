"""Tokenizers made of the caption language's own words: a CLIP and a T5 one, the same in every process, no download.

Any other text still has a tokenization: CLIP falls back to bytes, T5 to letters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, T5Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"-()"


def clip_tokenizer(words: Sequence[str], length: int) -> CLIPTokenizer:
    """Return a CLIP tokenizer with one token for each of `words`; `length` is the longest text in tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges([*word[:-1], word[-1] + "</w>"] for word in sorted(set(words)))
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def learn_merges(words: Iterable[list[str]]) -> list[tuple[str, str]]:
    """Learn byte-pair merges of words in pieces, the most frequent pair first, until every word is one token.

    Equally frequent pairs are taken in alphabetical order. The trainer of the `tokenizers` package takes them at
    random, so two processes would give the same word two different ids.
    """
    spelled = list(words)
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in spelled for pair in pairwise(word)):
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        spelled = [_merge(word, merges[-1]) for word in spelled]
    return merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in word:
        # A piece that was just merged differs from the first of the pair: a merge is longer than its parts.
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def t5_tokenizer(words: Sequence[str], length: int) -> T5Tokenizer:
    """Return a T5 (Unigram) tokenizer in which a whole word is far likelier than its letters."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [("▁" + word, -2.0) for word in sorted(set(words))] + [("▁", -4.0)]
    vocab += [(letter, -8.0) for letter in LETTERS]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=length)
