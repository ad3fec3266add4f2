"""The documentation as a site: it builds without a warning, its links lead somewhere, and its search finds."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder


def test_links_lead_somewhere(site: Path) -> None:
    """To files of the site, and to places that are in them."""
    pages = {page: page.read_text() for page in site.rglob("*.html")}
    assert len(pages) > 40
    anchors = {page: set(re.findall(r'id="([^"]+)"', text)) for page, text in pages.items()}
    broken = []
    for page, text in pages.items():
        if page.name == "404.html":  # its links start from the root of wherever the site is
            continue
        for found in re.findall(r'(?:href|src)="([^"]+)"', text):
            link = urlsplit(html.unescape(found))
            if link.scheme or link.netloc:
                continue
            target = (page.parent / unquote(link.path)).resolve() if link.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (link.fragment and unquote(link.fragment) not in anchors.get(target, set())):
                broken.append(f"{page.relative_to(site)}: {found}")
    assert not broken
    assert "Sphinx" not in pages[site / "reference" / "index.html"]
    assert not [page for page, text in pages.items() if re.search(r":(class|func|mod|meth):<code>", text)]


def test_the_public_face_is_in_the_reference(site: Path) -> None:
    text = "".join(page.read_text() for page in (site / "reference").rglob("*.html"))
    for name in (
        "TernarySNNModule",
        "ternarize",
        "fold",
        "TernaryLIF",
        "FoldExport",
        "ImageDataModule",
        "record_spikes",
    ):
        assert re.search(rf'id="lightning_tspike\.[\w.]*\b{name}"', text), name


PROBE = """<iframe src="/?q=membrane" width=1200 height=800></iframe><img src="/slow"><pre id=found></pre><script>
onload = () => { const page = document.querySelector("iframe").contentDocument;
  document.getElementById("found").textContent =
    [...page.querySelectorAll("a.md-search-result__link")].map(link => link.getAttribute("href")).join(" "); };
</script>"""


class _Server(SimpleHTTPRequestHandler):
    """The site, and a page that looks at it as soon as a picture that takes ten seconds has come."""

    def do_GET(self) -> None:
        if self.path not in ("/probe", "/slow"):
            return super().do_GET()
        if self.path == "/slow":
            time.sleep(10)
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PROBE.encode() if self.path == "/probe" else b"")
        return None

    def log_message(self, *_: object) -> None:
        pass


def test_search(site: Path, tmp_path: Path, browser: str) -> None:
    """In a browser, from a server, as a reader has it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Server, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        dom = subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                "--dump-dom", f"http://127.0.0.1:{server.server_port}/probe",
            ],
            capture_output=True, text=True, check=True, timeout=180,
        ).stdout  # fmt: skip
        server.shutdown()
    results = re.search(r'<pre id="found">(.*?)</pre>', dom)[1].split()
    assert any("watching" in result for result in results), dom[-3000:]
