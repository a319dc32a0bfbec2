"""Corpora: what is loaded, what is refused and how, and that no test text is trained on."""

import gzip
import json
import sys

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain.tasks import Document, corpus, cut_sections, load_corpus, split_corpus


def _documents(num):
    return [Document(str(i), f"text {i}") for i in range(num)]


def _sides(split):
    return {d.text: side for side in ("train", "validation", "test") for d in getattr(split, side)}


# Embedded sources ---------------------------------------------------------------------------------


def test_embedded_sources_nest_and_are_large_enough_to_train_on():
    docs, core, full = (
        {d.id: d.text for d in load_corpus(s)} for s in ("python-docs", "python-core", "python")
    )
    assert docs.items() <= core.items() <= full.items()
    assert sum(map(len, docs.values())) > 300_000
    assert sum(map(len, core.values())) > 3_000_000
    assert sum(map(len, full.values())) > 6_000_000


def test_embedded_sources_have_readable_ids_and_only_hand_written_text():
    ids = [d.id for d in load_corpus("python")]
    assert {"topics/assert", "stdlib/argparse.py", "stdlib/json/decoder.py"} <= set(ids)
    assert len(ids) == len(set(ids))
    unwanted = ("site-packages", "/test/", "/tests/", "encodings/", "topics.py", "_sysconfigdata")
    assert not [i for i in ids if any(u in i for u in unwanted)]


def test_the_order_of_an_embedded_source_is_fixed():
    ids = [d.id for d in load_corpus("python-core")]
    topics = [i for i in ids if i.startswith("topics/")]
    assert ids == sorted(topics) + sorted(i for i in ids if i.startswith("stdlib/"))


def test_an_installation_without_topics_still_gives_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert {d.id.split("/")[0] for d in load_corpus("python-core")} == {"stdlib"}


def test_an_installation_without_any_text_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match=r"neither pydoc_data\.topics nor the library's sources"):
        load_corpus("python")


# Files and folders --------------------------------------------------------------------------------


def test_a_folder_is_read_recursively_in_order_without_hidden_and_foreign_files(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "two.md").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"three"))
    (tmp_path / "d.jsonl").write_text('{"text": "four"}\n\n{"text": "five"}\n')
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    assert load_corpus(tmp_path) == [
        Document("a.txt", "one"),
        Document("b/two.md", "two"),
        Document("c.txt.gz", "three"),
        Document("d.jsonl:1", "four"),
        Document("d.jsonl:3", "five"),
    ]


def test_compressed_rows_and_another_column_are_read(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"body": "hé"}).encode()))
    assert load_corpus(str(path), text_column="body") == [Document("rows.jsonl.gz:1", "hé")]


def test_a_byte_order_mark_and_windows_line_ends_are_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert load_corpus(tmp_path / "a.txt")[0].text == "one\ntwo"


def test_a_local_path_wins_over_a_dataset_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imdb").mkdir()
    (tmp_path / "imdb" / "a.txt").write_text("local")
    assert load_corpus("imdb")[0].text == "local"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", r"a\.txt is not UTF-8 text \(byte 3 is 0xe9\)"),
        ("a.txt", b" \n ", r"a\.txt holds no text"),
        ("a.csv", b"x", r"a\.csv must end in \.txt, \.md, \.py, \.jsonl"),
        ("a.jsonl", b'{"text": ""}\n{"b": 1, "id": 2}', r"l:2 has no column 'text'; it has b, id"),
        ("a.jsonl", b'{"text": "x"}\n{"te', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b'["x"]', r"a\.jsonl:1 is not a JSON object but list"),
        ("a.jsonl", b'{"text": null}', r"a\.jsonl:1: 'text' must be a string, got NoneType"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"a\.jsonl:1: 'text' is not valid Unicode"),
    ],
)
def test_unusable_content_is_refused_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_corpus(tmp_path / name)


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(b"text" * 99)[:-12]])
def test_a_damaged_archive_is_named(tmp_path, content):
    (tmp_path / "a.txt.gz").write_bytes(content)
    with pytest.raises(OSError, match=r"could not read .*a\.txt\.gz: "):
        load_corpus(tmp_path / "a.txt.gz")


def test_an_unreadable_file_is_named_with_the_reason(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setattr(corpus.Path, "read_bytes", refuse)
    with pytest.raises(PermissionError, match=r"could not read .*a\.txt: .*Permission denied"):
        load_corpus(tmp_path)


def test_an_unreadable_folder_is_named_with_the_reason(tmp_path, monkeypatch):
    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", str(folder)))

    monkeypatch.setattr(corpus.os, "walk", walk)
    with pytest.raises(PermissionError, match=f"could not read {tmp_path}: Permission denied"):
        load_corpus(tmp_path)


def test_a_folder_without_text_says_what_would_count_as_text(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no text files \(\.txt, \.md, \.py, \.jsonl"):
        load_corpus(tmp_path)


@pytest.mark.parametrize("source", ["missing.txt", "./missing", "~/missing-folder", "C:\\missing"])
def test_a_missing_path_is_not_looked_up_on_the_hub(source, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        load_corpus(source)


# The hub ------------------------------------------------------------------------------------------


def test_a_hub_dataset_is_loaded_by_name_configuration_split_and_column(monkeypatch):
    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_dict({"body": ["one", "", "two"], "id": [1, 2, 3]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    loaded = load_corpus("org/name:config", text_column="body", split="test")
    assert asked == [(("org/name", "config"), {"split": "test"})]
    assert loaded == [Document("org/name/test/0", "one"), Document("org/name/test/2", "two")]


def test_a_hub_dataset_without_the_column_lists_those_it_has(monkeypatch):
    rows = datasets.Dataset.from_dict({"body": ["one"], "id": [1]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: rows)
    with pytest.raises(ValueError, match="dataset name has no column 'text'; it has body, id"):
        load_corpus("name")


def test_a_name_that_is_nothing_says_everything_that_was_tried(monkeypatch):
    def load(*args, **kwargs):
        raise ConnectionError("no route to the hub\nlong trace")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match="could not be loaded from the hub") as caught:
        load_corpus("pyton")
    for part in ("'pyton' is no embedded source", "python-core", "no file", "no route to the hub"):
        assert part in str(caught.value)


# Samples ------------------------------------------------------------------------------------------


def test_a_sample_fills_its_budget_is_spread_and_repeats():
    sample = load_corpus("python-core", max_characters=500_000)
    assert 450_000 < sum(len(d.text) for d in sample) <= 500_000
    whole = [d.id for d in load_corpus("python-core")]
    quarters = {4 * whole.index(d.id) // len(whole) for d in sample}
    assert quarters == {0, 1, 2, 3}
    assert sample == load_corpus("python-core", max_characters=500_000)


def test_a_document_larger_than_the_budget_is_cut_at_a_paragraph(tmp_path):
    (tmp_path / "a.txt").write_text("first\n\nsecond\n\nthird")
    (document,) = load_corpus(tmp_path, max_characters=16)
    assert document == Document("a.txt", "first\n\nsecond\n\n")


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (1.5, TypeError)])
def test_a_budget_must_be_a_positive_integer(value, error):
    with pytest.raises(error, match="max_characters"):
        load_corpus("python-docs", max_characters=value)


# Splits -------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.sets(st.integers(0, 2000), max_size=100))
def test_documents_added_later_move_no_other(seed, added):
    before = _sides(split_corpus(_documents(300), seed=seed, validation_fraction=0.2))
    extra = [Document(f"new {i}", f"new text {i}") for i in added]
    after = _sides(split_corpus(extra + _documents(300), seed=seed, validation_fraction=0.2))
    assert before.items() <= after.items()


def test_a_split_loses_nothing_and_shares_nothing():
    documents = _documents(400)
    split = split_corpus(documents)
    parts = split.train + split.validation + split.test
    assert sorted(parts, key=lambda d: d.id) == sorted(documents, key=lambda d: d.id)


def test_exact_copies_fall_on_one_side():
    copies = [Document(f"copy {d.id}", d.text) for d in _documents(400)]
    split = split_corpus(_documents(400) + copies)
    texts = [{d.text for d in part} for part in (split.train, split.validation, split.test)]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 400


def test_fractions_are_met_within_four_standard_deviations():
    split = split_corpus(_documents(10_000), validation_fraction=0.1, test_fraction=0.2)
    assert abs(len(split.validation) - 1000) < 4 * (10_000 * 0.1 * 0.9) ** 0.5
    assert abs(len(split.test) - 2000) < 4 * (10_000 * 0.2 * 0.8) ** 0.5


def test_another_seed_gives_another_split():
    assert split_corpus(_documents(400), seed=1).test != split_corpus(_documents(400)).test


def test_one_book_is_split_by_its_sections():
    book = "".join(f"paragraph {i} {'word ' * 40}\n\n" for i in range(2000))
    split = split_corpus([Document("book.txt", book)])
    parts = sorted(split.train + split.validation + split.test, key=lambda d: d.id)
    assert "".join(d.text for d in parts) == book
    assert parts[1].id == "book.txt#0001"


@pytest.mark.parametrize("source", corpus.EMBEDDED_SOURCES)
def test_every_embedded_source_splits_into_useful_parts(source):
    split = split_corpus(load_corpus(source))
    assert all(sum(len(d.text) for d in p) > 10_000 for p in (split.validation, split.test))


def test_an_empty_part_is_an_error_with_a_way_out():
    with pytest.raises(ValueError, match=r"part of the corpus is empty .*cut_sections"):
        split_corpus(_documents(3))


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.1), (0.1, 1.0), (0.5, 0.5)])
def test_fractions_must_leave_three_parts(validation, test):
    with pytest.raises(ValueError, match=r"fraction must satisfy 0\.0 <"):
        split_corpus(_documents(400), validation_fraction=validation, test_fraction=test)


@given(st.text(st.sampled_from("ab \n"), max_size=200), st.integers(1, 20))
def test_sections_join_to_the_document_and_keep_their_size(text, characters):
    sections = cut_sections([Document("d", text)], characters=characters)
    assert "".join(d.text for d in sections) == text
    assert all(len(d.text) <= characters for d in sections)


def test_sections_end_at_the_best_border_in_reach():
    sections = cut_sections([Document("d", "aa\n\nbb\ncc\ndddddddddd")], characters=8)
    assert [d.text for d in sections] == ["aa\n\n", "bb\ncc\n", "dddddddd", "dd"]
