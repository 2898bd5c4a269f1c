"""A learned tokenizer writes every text, knows the special tokens, and is the same again after a save."""

import pytest
from transformers import AutoTokenizer

from blip3o_hf.training.tokenizers import SPECIAL_TOKENS, train_tokenizer

TEXTS = ["two red circles", "ünïcode, 图像 and 🎨!", "tabs\tand\n\nlines", " leading", ""]
PLAIN = [
    ("Two RED Circles", "two red circles"),
    ("what\u2019s it", "what's it"),
    ("a  red   circle", "a red circle"),
    ("\uff12 circles", "2 circles"),
    ("Ünïcode", "ünïcode"),
]


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_is_written_and_read_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(("text", "plain"), PLAIN)
def test_other_ways_to_write_a_text_are_the_same_text(tokenizer, text, plain):
    assert tokenizer(text)["input_ids"] == tokenizer(plain)["input_ids"]


def test_special_tokens_are_single_and_never_split(tokenizer):
    for index, token in enumerate(SPECIAL_TOKENS):
        assert tokenizer(token)["input_ids"] == [index]
        assert tokenizer.convert_tokens_to_ids(token) == index
    between = tokenizer("a[IMG]b")["input_ids"]
    assert between[1] == tokenizer.convert_tokens_to_ids("[IMG]")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


def test_words_of_the_corpus_become_single_tokens():
    tokenizer = train_tokenizer(["zebra zebra zebra quokka quokka"] * 10, vocab_size=400, max_length=64)
    assert len(tokenizer(" zebra quokka")["input_ids"]) == 2
    assert len(tokenizer(" unseen")["input_ids"]) > 1


def test_the_vocabulary_stays_within_its_bound():
    corpus = [f"word{index} other{index}" for index in range(200)]
    assert len(train_tokenizer(corpus, vocab_size=300, max_length=64)) == 300
    assert len(train_tokenizer(["a"], vocab_size=300, max_length=64)) == 256 + len(SPECIAL_TOKENS)


def test_the_same_corpus_gives_the_same_tokenizer():
    first, second = (train_tokenizer(TEXTS * 3, vocab_size=320, max_length=64) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()


def test_batches_are_padded_on_the_left(tokenizer):
    batch = tokenizer(["two red circles above", "two"], padding=True)
    assert batch["attention_mask"][1][0] == 0
    assert batch["input_ids"][1][0] == tokenizer.pad_token_id
    assert tokenizer.model_max_length == 512


def test_a_saved_tokenizer_is_the_same_again(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.padding_side == "left"
    for text in [*TEXTS, "<|im_start|>user\na[IMG]<|im_end|>"]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
