"""Pages looked at by a headless Chromium, on this machine only."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")

# Loads each page as a phone would and writes down what it shows.
HARNESS = """<!doctype html><meta charset="utf-8"><body><script>
const pages = %s, found = {};
(async () => {
  for (const page of pages) {
    const frame = document.createElement("iframe");
    frame.style.width = "%dpx"; frame.style.height = "800px";
    await new Promise(done => { frame.onload = done; frame.src = page;
                                document.body.append(frame); });
    const inside = frame.contentDocument;
    for (const image of inside.images) image.loading = "eager";
    await Promise.all([...inside.images].map(image => image.decode().catch(() => {})));
    found[page] = {
      title: inside.title, text: inside.body.innerText, width: inside.documentElement.scrollWidth,
      broken: [...inside.images].filter(i => !i.naturalWidth).map(i => i.getAttribute("src")),
      images: inside.images.length, scripts: inside.querySelectorAll("main script").length};
    frame.remove();
  }
  const out = document.createElement("pre"); out.id = "found";
  out.textContent = JSON.stringify(found); document.body.append(out);
})();
</script></body>"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def look_at(folder: Path, pages: list[str], width: int = 390) -> dict[str, dict[str, Any]]:
    """Of each page below ``folder``: title, text, width in pixels, images and broken ones."""
    assert BROWSER is not None
    (folder / "harness.html").write_text(HARNESS % (json.dumps(pages), width))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with TemporaryDirectory() as profile:
            result = subprocess.run(
                [
                    *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
                    *("--no-first-run", "--disable-background-networking"),
                    *("--disable-component-update", "--disable-sync", f"--user-data-dir={profile}"),
                    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                    *("--virtual-time-budget=60000", "--dump-dom"),
                    f"http://127.0.0.1:{server.server_port}/harness.html",
                ],
                capture_output=True,
                text=True,
                timeout=240,
            )
    finally:
        server.shutdown()
        server.server_close()
        (folder / "harness.html").unlink()
    dumped = re.search(r'<pre id="found">(.*?)</pre>', result.stdout, re.DOTALL)
    assert dumped, result.stderr[-2000:]
    return json.loads(unescape(dumped[1]))
