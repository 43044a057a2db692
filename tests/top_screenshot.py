"""Draws docs/images/top.svg: `llmpipe top` in front of an endpoint that answers as a busy proxy does.

.venv/bin/python tests/top_screenshot.py docs/images/top.svg
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from fake_admin import FakeAdmin

from llmpipe.admin_address import parse_admin
from llmpipe.top.app import Top
from llmpipe.top.source import Source


async def draw(admin: FakeAdmin) -> str:
    app = Top(Source(parse_admin(admin.url)), 0.2)
    async with app.run_test(size=(100, 28)) as pilot:
        while "/status" not in admin.asked:
            await pilot.pause(0.05)
        await pilot.press("down", "down")
        await pilot.pause(0.5)
        return app.export_screenshot(title="llmpipe top")


def main() -> None:
    with FakeAdmin() as admin:
        text = asyncio.run(draw(admin))
        # As long as the other, so that nothing moves.
        text = text.replace(admin.url, "http://127.0.0.1:9090".rjust(len(admin.url), "\u00a0"))
    text = re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.DOTALL)  # an image in a page asks nobody else for a font
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main()
