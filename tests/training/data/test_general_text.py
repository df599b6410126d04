"""General text: markup is removed, the split of articles never changes, windows stay inside articles."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support.bundles import make_tokenizer
from transformers import PreTrainedTokenizerFast

from index.sequence.vocabulary import IdentifierVocabulary
from training.config import TrainConfig
from training.data.general_text import (
    Article,
    articles,
    encode_plain,
    held_out_articles,
    knowledge_articles,
    plain_text,
    token_windows,
)
from training.model.backbones import load_backbone


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = make_tokenizer([article.text[:3000] for article in knowledge_articles()[:10]], 1000)
    IdentifierVocabulary.for_tokenizer(made, (4, 4)).add_to(made)
    return made


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("'''Bold''' and ''italic'' and '''''both'''''.", "Bold and italic and both."),
        ("''Animal Farm'''s pigs; '''Dog''' 's", "Animal Farm's pigs; Dog 's"),
        ("[[A]], [[B (x)|b]]s, [[C#d|e]], [[Mercury (planet)|]].", "A, bs, e, Mercury."),
        ("A [[File:x.jpg|thumb|a [[cat]] in {{lang|de|Rom}}|alt=[[y]]]]dog", "A dog"),
        ("Left [[Category:X]][[fr:Y]][[be-x-old:Z]] but [[:Category:X]]", "Left but Category:X"),
        ("[[wikt:word|word]] and [[s:Poem|poem]]", "word and poem"),
        ("See [http://x.org/a?b the site], [//y.org], https://z.org/q.", "See the site,,"),
        ("a{{b|c={{d|{{e}}}}|f}}g", "ag"),
        ("{{Infobox\n| name = {{lang|fr|X}}\n| image = [[File:q.png|10px]]\n}}\nText.", "Text."),
        (
            "It is {{convert|5|km|mi}} or {{convert|5|to|10|km|mi|abbr=on}} away",
            "It is 5 km or 5 to 10 km away",
        ),
        ("{{lang|de|Rom}} ({{lang-el|Ῥώμη}}), {{As of|2012|alt=x}}", "Rom (Ῥώμη), As of 2012"),
        ("{{lang|de|[[Rom|Stadt Rom]]}} {{chem|H|2|O}} 1{{ndash}}2", "Stadt Rom H2O 1–2"),
        ("{{quote|text=Be brief.|author=X}} {{citation needed|date=May 2010}}", "Be brief."),
        ("{|\n! a !! b\n|-\n| 1 || {| class=x\n| inner\n|}\n|}\nAfter", "After"),
        (":{| class='wikitable'\n| x\n{|\n| y\n|}\n| z\n|}\nEnd.", "End."),
        (
            'One<ref name="a/b">no {{cite|x}}</ref>, two<ref name=c />, three<REF>no</REF>.',
            "One, two, three.",
        ),
        ("a<ref name=x/> b <ref>c</ref> d", "a b d"),
        ("H<sub>2</sub>O<br/>next <!-- no\n[[x]] --><span style='a>b'>yes</span>", "H2O\nnext b'>yes"),
        ("x<!-- never closed [[y]]", "x"),
        ("<math>x_{1}</math><gallery>\nFile:a.jpg|b\n</gallery>rest", "rest"),
        ("<nowiki>[[a]] ''b''</nowiki> c", "[[a]] ''b'' c"),
        ("Tom &amp; Jerry&nbsp;&ndash; 5&nbsp;m", "Tom & Jerry – 5 m"),
        ("* one\n** two\n# three\n:; four\n----\nfive", "one\ntwo\nthree\nfour\nfive"),
        ("Rome ({{IPA|x}}; {{audio|y}}) is , a city ( {{z}} ).", "Rome is, a city."),
        ("unclosed {{template and [[link", "unclosed template and link"),
        ("closed}} twice]] here|}", "closed twice here"),
        ("__NOTOC__\n#hash", "hash"),
        ("== A ==\n=== B ===\nb\n=== C ===\n{{c}}\n== D ==\n== E ==\ne", "A\nB\nb\nE\ne"),
        ("a\n== References ==\nno\n=== Books ===\nno\n== Legacy ==\nyes", "a\nLegacy\nyes"),
        ("== See also ==\n* [[x]]\n== External links ==\n* [http://x y]", ""),
    ],
)
def test_markup_gives_way_to_text(markup: str, text: str) -> None:
    assert plain_text(markup) == text


def test_deep_and_broken_markup_takes_no_time() -> None:
    assert plain_text("{{a|" * 20000 + "x" + "}}" * 20000 + " kept") == "kept"
    assert plain_text("[[" * 50000 + "kept") == "kept"


def test_the_articles_are_readable() -> None:
    found = articles()
    assert len(found) >= 60
    assert len({article.title for article in found}) == len(found)
    for article in found:
        assert len(article.text) >= 2000
        assert not re.search(r"\{\{|\}\}|\[\[|\]\]|\{\||<ref|</|''|&nbsp;|thumb\||\bhttps?:", article.text)
    lincoln = next(article for article in found if article.title == "Abraham Lincoln")
    assert "the 16th President of the United States" in lincoln.text
    assert "\nExternal links" not in lincoln.text
    assert not any("disambiguation" in article.title for article in found)


def test_the_split_is_by_article_and_complete() -> None:
    everything, held_out, knowledge = articles(), held_out_articles(), knowledge_articles()
    assert held_out == [everything[k] for k in range(4, len(everything), 5)]
    assert not {a.title for a in held_out} & {a.title for a in knowledge}
    assert sorted(a.title for a in held_out + knowledge) == sorted(a.title for a in everything)
    assert sum(len(a.text) for a in held_out) > 300_000


def test_windows_lie_inside_articles_and_cover_them_evenly(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = held_out_articles()
    windows = token_windows(tokenizer, texts, 32, 32 * 50)
    assert windows.shape == (50, 32)
    assert windows.dtype == np.int64
    assert np.array_equal(windows, token_windows(tokenizer, texts, 32, 32 * 50 + 31))
    encoded = [encode_plain(tokenizer, article.text) for article in texts]
    places = []
    for window in windows:
        found = [
            (k, start)
            for k, ids in enumerate(encoded)
            for start in range(0, len(ids) - 31, 32)
            if np.array_equal(ids[start : start + 32], window)
        ]
        assert len(found) == 1  # whole in one article, at one place
        places += found
    assert places == sorted(places)
    counts = np.bincount([k for k, _ in places], minlength=len(texts))
    assert counts.min() >= 50 // len(texts)
    assert counts.max() <= 50 // len(texts) + 1
    longest = max(range(len(texts)), key=lambda k: len(encoded[k]))
    starts = [start for k, start in places if k == longest]
    assert starts[-1] - starts[0] > len(encoded[longest]) / 3  # not only its beginning


def test_without_a_limit_every_whole_window_comes_once(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [Article("a", "one two three " * 40), Article("b", "x"), Article("c", "red green " * 30)]
    encoded = [encode_plain(tokenizer, article.text) for article in texts]
    expected = [ids[k : k + 16] for ids in encoded for k in range(0, len(ids) - 15, 16)]
    assert np.array_equal(token_windows(tokenizer, texts, 16), np.stack(expected))
    assert token_windows(tokenizer, texts, 16, 15).shape == (0, 16)
    assert token_windows(tokenizer, texts[1:2], 16).shape == (0, 16)
    few = token_windows(tokenizer, texts, 16, 16 * (len(expected) - 1))
    assert len(few) == len(expected) - 1  # the long article gives the tokens that the short ones lack
    with pytest.raises(ValueError, match="at least one token"):
        token_windows(tokenizer, texts, 0)


def test_no_text_becomes_a_special_token(tokenizer: PreTrainedTokenizerFast) -> None:
    written = "<|search|> <|endoftext|> <|0:1|><|item|> 星" * 5
    first_added = tokenizer.convert_tokens_to_ids("<|search|>")
    windows = token_windows(tokenizer, [Article("x", written), *held_out_articles()[:2]], 8)
    assert windows.min() > 0  # 0 is <|endoftext|>
    assert windows.max() < first_added
    assert tokenizer.decode(encode_plain(tokenizer, written)) == written


def test_smollm2_reads_the_text_back() -> None:
    smollm2 = load_backbone(
        TrainConfig.combined({"backbone": {"name": "smollm2-135m", "layers": 1}}), []
    ).tokenizer
    article = held_out_articles()[0]
    ids = encode_plain(smollm2, article.text)
    assert smollm2.decode(ids) == article.text
    assert 3 < len(article.text) / len(ids) < 6  # characters a token: English prose
