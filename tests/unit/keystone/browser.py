"""Chromium without a window, driven through a pair of pipes: the few commands that the tests of the page need.

`--remote-debugging-pipe` speaks Chrome's DevTools protocol on file descriptors 3 and 4, JSON messages with a zero byte
behind each. That needs no port, no driver and no package.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

PATIENCE = 30.0
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}


def find_chromium() -> str | None:
    return os.environ.get("KEYSTONE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


# The protocol is spoken on descriptors 3 and 4 and nowhere else; ours may have any number, these included.
_MOVE_PIPES = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 64) for number in sys.argv[1:3]]
for end, wanted in zip(ends, (3, 4)):
    os.dup2(end, wanted)
    os.close(end)
os.execv(sys.argv[3], sys.argv[3:])
"""


_PIXELS = """
(async () => {
  const bytes = Uint8Array.from(atob("%s"), (letter) => letter.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
  canvas.drawImage(image, 0, 0);
  const data = canvas.getImageData(0, 0, image.width, image.height).data;
  let text = "";
  for (let at = 0; at < data.length; at += 8190) text += btoa(String.fromCharCode(...data.subarray(at, at + 8190)));
  return [image.width, image.height, text];
})()
"""


class Browser:
    """One page in one browser."""

    def __init__(self, out: int, back: int) -> None:
        self._out, self._back, self._held = out, back, b""
        self._number, self._session = 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == self._number:
                assert "error" not in found, (method, found["error"])
                result: dict[str, Any] = found["result"]
                return result
            self.events.append(found)

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._back], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser says nothing"
            piece = os.read(self._back, 1 << 16)
            assert piece, "the browser is gone"
            self._held += piece
        line, _, self._held = self._held.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def open(self, url: str, *, width: int = 1440, height: int = 1000, dark: bool = False, ratio: float = 1.0) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, still])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=ratio,
            mobile=width < 500,
        )
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Until an expression is true: what the page does, it does when the server has answered."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with suppress(AssertionError):  # between two documents there is nothing to ask
                if found := self.ask(f"Boolean({expression})"):
                    return found
            select.select([], [], [], 0.02)
        raise AssertionError(f"never true: {expression}\n{self.ask('document.body.innerText')}")

    def press(self, key: str, *, shift: bool = False) -> None:
        text = {"Enter": "\r", " ": " "}.get(key, "")
        told = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **told)
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def shot(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def smaller(self, picture: bytes) -> bytes:
        """The same PNG with at most 256 colours; leaves the page."""
        self.call("Page.navigate", url="about:blank")
        width, height, pixels = self.ask(_PIXELS % base64.b64encode(picture).decode())
        plain = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(-1, 4)[:, :3]
        coarse, place, count = np.unique(plain >> 3, axis=0, return_inverse=True, return_counts=True)
        common = np.argsort(count)[::-1][:256]
        # Each coarse colour becomes the mean of its own pixels; a rare one goes to the nearest that is common.
        sums = np.stack([np.bincount(place, plain[:, part]) for part in range(3)], axis=1)
        palette = (sums / count[:, None])[common].round().astype(np.uint8)
        nearest = ((coarse[:, None].astype(int) - coarse[common][None].astype(int)) ** 2).sum(-1).argmin(1)
        rows = nearest[place].astype(np.uint8).reshape(height, width)
        body = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes(), 9)

        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        return picture[:8] + head + chunk(b"PLTE", palette.tobytes()) + chunk(b"IDAT", body) + chunk(b"IEND", b"")

    def heard(self, method: str) -> list[dict[str, Any]]:
        """The events of a kind so far."""
        self.ask("1")
        return [event["params"] for event in self.events if event.get("method") == method]


@contextmanager
def chromium(program: str, folder: Path) -> Iterator[Browser]:
    to_browser, ours_out = os.pipe()
    ours_in, from_browser = os.pipe()
    command = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-extensions", "--force-color-profile=srgb", f"--user-data-dir={folder}", "--remote-debugging-pipe",
    ]  # fmt: skip

    process = subprocess.Popen(
        [sys.executable, "-c", _MOVE_PIPES, str(to_browser), str(from_browser), *command],
        pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Browser(ours_out, ours_in)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours_out)
        os.close(ours_in)
