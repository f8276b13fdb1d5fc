"""Opens a page in headless Chromium, runs a script in it and records its requests to the network."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
from html import escape
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-extensions",
    "--disable-features=OptimizationHints,MediaRouter,Translate", "--metrics-recording-only", "--no-pings",
    "--proxy-bypass-list=<-loopback>", "--virtual-time-budget=5000",
)  # fmt: skip
OWN = re.compile(r"\.(google|googleapis|gvt1)\.com[:/ ]")  # the browser's own requests; the page reports its own
CATCHER = """<script>
window.faults = []; window.requests = [];
window.addEventListener("error", event => faults.push(event.message || "a resource did not load"), true);
for (const name of ["error", "warn"]) console[name] = (...words) => faults.push(words.join(" "));
</script>"""
PROBE = """<script>
window.addEventListener("load", () => {
  let outcome;
  performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).forEach(
    entry => requests.push(entry.name));
  try { outcome = (() => { %s })(); } catch (error) { faults.push(String(error)); }
  top.document.documentElement.dataset.outcome = encodeURIComponent(JSON.stringify([outcome, faults, requests]));
});
</script>"""


class Proxy:
    """Records the first line of each request on a local port, and never answers."""

    def __enter__(self) -> Proxy:
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                try:
                    self.asked.append(connection.recv(4096).split(b"\r\n")[0].decode(errors="replace"))
                except OSError:
                    self.asked.append("a connection without a request")


def run_in_page(page: Path, script: str, scratch: Path, width: int | None = None) -> SimpleNamespace:
    """Runs the body of a function in a copy of the page in ``scratch``, in a frame of ``width`` CSS pixels.

    Returns:
        ``outcome``: what the function returned; ``faults``: errors and warnings of the console; ``asked``: requests of
        the page, those it counts itself and those that reach a proxy.
    """
    text = page.read_text(encoding="utf-8")
    copy = scratch / "probed.html"
    text = text.replace("<head>", "<head>" + CATCHER, 1).replace("</body>", PROBE % script + "</body>", 1)
    if width is not None:  # Chromium's windows are at least 500 pixels wide
        text = f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{escape(text)}"></iframe>'
    copy.write_text(text, encoding="utf-8")
    with Proxy() as proxy:
        command = [CHROMIUM, *FLAGS, f"--proxy-server={proxy.address}", f"--user-data-dir={scratch / 'profile'}",
                   "--dump-dom", copy.as_uri()]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        found = re.search(r'data-outcome="([^"]*)"', done.stdout)
        assert found, done.stderr[-2000:]
        outcome, faults, requests = json.loads(unquote(found[1]))
        asked = [line for line in proxy.asked if not OWN.search(line)]
        return SimpleNamespace(outcome=outcome, faults=faults, asked=requests + asked)
