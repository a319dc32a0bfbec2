"""Reports: complete in one file, escaped, and the same in Markdown and HTML."""

import base64
import builtins
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain import plots
from selftrain.report import Heading, Image, Table, Text, Trace, write_report

EVIL = '<script>alert(1)</script> & "quotes" | *stars* `ticks`'


class _Page(HTMLParser):
    """Collects every tag with its attributes, and the text between."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def _written(folder, *blocks, title="A run"):
    html = write_report(folder, title, blocks)
    return (folder / "report.md").read_text("utf-8"), html.read_text("utf-8")


@pytest.fixture
def picture(tmp_path):
    ax = plots.loss_curves({"a": ([1, 2], [2.0, 1.0])}, ylabel="loss")
    plots.save_figure(ax, tmp_path / "plots" / "a loss.png")
    return "plots/a loss.png"


# Self-contained and escaped -----------------------------------------------------------------------


def test_the_page_loads_nothing_from_anywhere(tmp_path, picture):
    text = "![x](https://example.org/x.png) [link](https://example.org)"
    _, html = _written(tmp_path, Image(picture, "loss"), Text(text), Trace(["a"], ["target"]))
    page = _Page(html)
    loaded = [a[k] for _, a in page.tags for k in ("src", "srcset", "data", "poster") if k in a]
    assert loaded
    assert all(source.startswith("data:image/") for source in loaded)
    assert not {"link", "script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_pictures_are_embedded_in_the_page_and_linked_in_markdown(tmp_path, picture):
    md, html = _written(tmp_path, Image(picture, "the loss", "Falls."))
    source = re.search(r'src="data:image/png;base64,([^"]+)"', html).group(1)
    assert base64.b64decode(source) == (tmp_path / picture).read_bytes()
    assert "![the loss](plots/a%20loss.png)\n\nFalls." in md


def test_plots_are_shown_at_half_their_pixels(tmp_path, picture):
    _, html = _written(tmp_path, Image(picture, "the loss"))
    assert 'width="640"' in html


@pytest.mark.parametrize(
    "block",
    [
        Heading(EVIL),
        Table([EVIL], [[EVIL]], caption="x"),
        Trace([EVIL], ["accepted"]),
        Text(EVIL),
        Table(["a"], [["b"]], caption=EVIL),
    ],
    ids=["heading", "table", "trace", "text", "caption"],
)
def test_everything_is_escaped(tmp_path, block):
    _, html = _written(tmp_path, block, title=EVIL)
    page = _Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("alert(1)") >= 3  # in the page's title, its heading and the block


def test_unsafe_links_are_no_links(tmp_path):
    _, html = _written(tmp_path, Text("[x](javascript:alert(1)) [y](https://example.org)"))
    assert [a["href"] for tag, a in _Page(html).tags if tag == "a"] == ["https://example.org"]


@given(cell=st.text(max_size=20))
def test_any_cell_leaves_the_table_whole(tmp_path_factory, cell):
    md, html = _written(tmp_path_factory.mktemp("r"), Table(["a", "b"], [[cell, 1]]))
    assert [tag for tag, _ in _Page(html).tags].count("td") == 2
    row = md.rstrip("\n").split("\n")[-1]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3


# Contents -----------------------------------------------------------------------------------------


def test_text_is_rendered_markdown(tmp_path):
    md, html = _written(tmp_path, Text("**bold** `code`\n\n- one\n- two"))
    assert "<p><strong>bold</strong> <code>code</code></p>" in html
    assert html.count("<li>") == 2
    assert "**bold** `code`\n\n- one\n- two" in md


def test_tables_show_three_digits_and_set_numbers_right(tmp_path):
    rows = [["x", 0.41, 1234.5, "1.3 ± 0.1", 7], ["y", 12.345, None, "2", 800]]
    md, html = _written(tmp_path, Table(["name", "a", "b", "c", "d"], rows))
    assert "| x | 0.410 | 1,234 | 1.3 ± 0.1 | 7 |\n| y | 12.3 | – | 2 | 800 |" in md
    assert "| --- | ---: | ---: | ---: | ---: |" in md
    classes = [a.get("class") for tag, a in _Page(html).tags if tag == "th"]
    assert classes == [None, "number", "number", "number", "number"]


def test_blocks_keep_their_order_and_levels(tmp_path):
    md, html = _written(tmp_path, Heading("One"), Text("two"), Heading("Three", 3))
    assert md == "# A run\n\n## One\n\ntwo\n\n### Three\n"
    assert html.index("<h2>One</h2>") < html.index("<p>two</p>") < html.index("<h3>Three</h3>")


def test_a_trace_colours_each_token_and_breaks_lines_as_the_text_does(tmp_path):
    trace = Trace(["def", " f", "\n", " x"], ["prompt", "accepted", "target", "rejected"])
    md, html = _written(tmp_path, trace)
    body = re.search(r'<pre class="trace">(.*?)</pre>', html, re.DOTALL).group(1)
    assert [a["class"] for tag, a in _Page(body).tags if tag == "span"] == list(trace.status)
    assert _Page(body).text == "def·f↵\n·x"
    assert "```text\ndef f[+\n+][-·x-]\n```" in md


def test_a_trace_in_markdown_cannot_end_its_own_fence(tmp_path):
    md, _ = _written(tmp_path, Trace(["```\n", "````"], ["accepted", "accepted"]))
    assert "`````text\n```\n````\n`````" in md


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Heading("x", 1), "level must satisfy 2 <= level <= 4, got 1"),
        (lambda: Table([], []), "columns is empty"),
        (lambda: Table(["a"], [["b"], ["c", "d"]]), r"rows\[1\] has 2 cells for 1 columns"),
        (lambda: Image("a.gif", "x"), "the suffix of path must be one of '.png'"),
        (lambda: Trace(["a"], []), "status must have one entry for each token"),
    ],
)
def test_bad_blocks_are_refused_when_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_missing_picture_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Image: could not read .*missing\.png"):
        write_report(tmp_path, "A run", [Image("missing.png", "x")])
    assert not list(tmp_path.iterdir())


def test_another_kind_of_block_is_refused(tmp_path):
    with pytest.raises(TypeError, match="'text' is not a Heading, Text, Table, Image or Trace"):
        write_report(tmp_path, "A run", ["text"])


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    _written(tmp_path, Text("old"))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match=r"could not write .*report\.md .*No space left"):
        write_report(tmp_path, "A run", [Text("new")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.md"]
    assert "old" in (tmp_path / "report.md").read_text()


def test_reports_need_neither_torch_nor_matplotlib(monkeypatch, tmp_path):
    real = builtins.__import__

    def guarded(name, *args, **kwargs):
        assert name.split(".")[0] not in ("torch", "matplotlib")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    write_report(tmp_path, "A run", [Text("x"), Table(["a"], [[1]])])
