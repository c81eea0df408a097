"""``plan --html``: one page with nothing outside of it, which a real browser shows without a complaint."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import oracles
import pytest
from small_checkpoints import make

from crosswalk.cli.commands import cli, run_command
from crosswalk.cli.review import page
from crosswalk.jobs.options import Options
from crosswalk.jobs.prepare import prepare
from crosswalk.runtime.errors import Diagnostic

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)


class Page(html.parser.HTMLParser):
    """The rows of the tables of a page, its tags, and every address in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag == "tr":
            self.rows.append([])
        self._cell = (tag in ("td", "span", "br") and self._cell) or tag == "td"
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._cell and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


def row(found: Page, left: str, column: int = 0) -> list[str]:
    (result,) = [cells for cells in found.rows if len(cells) > column and cells[column] == left]
    return [cell.strip() for cell in result]


def test_the_page_relates_both_configs_and_all_tensors(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    assert run_command(cli, ["plan", str(source), "--html", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    found = Page(text)
    assert found.addresses == ["data:,"]
    assert not re.search(r"url\(|@import|https?://", text)
    heads = row(found, "num_attention_heads")
    assert heads[1:4] == ["6", "decoder.block.mixer.heads", "6"]
    assert heads[4].startswith("num_attention_heads: {is: heads, default: 32} llama.yaml:")
    assert row(found, "decoder.block.normalization.epsilon", 2)[:2] == ["rms_norm_eps", "1e-05"]
    stated = row(found, "decoder.block.mlp.gated", 2)
    assert stated[0] == "-"
    assert "gated: true" in stated[4]
    assert row(found, "decoder.block.mixer.window_size") == ["decoder.block.mixer.window_size", "null"]
    assert row(found, "bos_token_id")[2] == "-"
    keys = {cells[0].strip() for cells in found.rows if len(cells) == 5}
    config = json.loads((source / "config.json").read_text())
    assert {key for key in config if not isinstance(config[key], dict)} <= keys
    relation = row(found, "model.layers.{0..2}.self_attn.k_proj.weight")
    assert relation[1] == "decoder.{0..2}.mixer.key_value.weight"
    assert "{k|v}_proj: key_value" in relation[3]
    drawn = re.findall(r'aria-label="blocks of ([^"]+)"', text)
    assert drawn == [f"decoder.0.{name}.weight" for name in ("mixer.key_value", "mlp.layer_1", "mlp.layer_2")]
    assert "([gate|up] intermediate) &lt;- hidden" in text


def test_what_prove_found_stands_beside_its_line(tmp_path: Path) -> None:
    prepared = prepare(make(tmp_path / "source"), Options())
    place = next(taken.struct.rules[0].position for (taken, *_) in prepared.bound.cases.values() if taken.struct.rules)
    hostile = '<script>alert(1)</script> & "both"'
    found = Page(text := page(prepared, [Diagnostic("prove/idle", hostile, place, "see it", "warning")]))
    assert text.count("<script>") == 1
    assert found.tags.count("script") == 1
    assert [cells for cells in found.rows if len(cells) == 5 and hostile in cells[4]]
    assert "What prove found" in text


@pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="the config is one of transformers 5")
def test_prove_is_run_for_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "source")
    assert run_command(cli, ["plan", str(source), "--prove"]) == 2
    assert "--prove goes with --html FILE" in capsys.readouterr().err


# ---- in a browser ----------------------------------------------------------------------------------------------------


def colours(file: Path) -> set[bytes]:
    """The colours of a PNG of 8 bits a channel."""
    data, pixels, at = file.read_bytes(), b"", 8
    width = depth = kind = 0
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if name == b"IHDR":
            width, _, depth, kind = struct.unpack(">IIBB", body[:10])
        pixels += body if name == b"IDAT" else b""
        at += 12 + length
    assert depth == 8
    size = {2: 3, 6: 4}[kind]
    raw, before, found = zlib.decompress(pixels), bytearray(width * size), set[bytes]()
    for start in range(0, len(raw), width * size + 1):
        line = bytearray(raw[start + 1 : start + 1 + width * size])
        unfilter(raw[start], line, before, size)
        found |= {bytes(line[n : n + 3]) for n in range(0, len(line), size)}
        before = line
    return found


def unfilter(kind: int, line: bytearray, above: bytearray, size: int) -> None:
    for n in range(len(line)):
        left, up = (line[n - size] if n >= size else 0), above[n]
        corner = above[n - size] if n >= size else 0
        guess = left + up - corner
        near = min((left, up, corner), key=lambda value: abs(guess - value))
        line[n] = (line[n] + (0, left, up, (left + up) // 2, near)[kind]) % 256


def browse(*arguments: Any) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr")
    command = [BROWSER, *flags, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(BROWSER is None, reason="there is no browser")
def test_a_browser_shows_the_page_and_its_search_works(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    file = tmp_path / "page.html"
    assert run_command(cli, ["plan", str(source), "--html", str(file)]) == 0
    shot = tmp_path / "page.png"
    done = browse(
        f"--user-data-dir={tmp_path / 'one'}", "--window-size=1000,700", f"--screenshot={shot}", file.as_uri()
    )
    assert shot.is_file(), done.stderr
    assert "CONSOLE" not in done.stderr
    assert len(colours(shot)) > 20
    search = """<script>
      const box = document.getElementById("search");
      box.value = "key_value hidden";
      box.dispatchEvent(new Event("input"));
    </script>"""
    file.write_text(file.read_text() + search)
    done = browse(f"--user-data-dir={tmp_path / 'two'}", "--dump-dom", file.as_uri())
    assert "CONSOLE" not in done.stderr
    shown = re.search(r'<span id="count">(\d+) of (\d+)</span>', done.stdout)
    assert shown is not None
    assert 0 < int(shown[1]) < int(shown[2]) // 4
    assert done.stdout.count('hidden=""') == int(shown[2]) - int(shown[1])
