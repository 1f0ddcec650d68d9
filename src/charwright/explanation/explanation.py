"""An explanation: what was found, and the forms in which it is shown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from charwright.errors import UsageError
from charwright.explanation.html_page import page_bytes
from charwright.explanation.results import Findings
from charwright.explanation.summary import summary_html, summary_text
from charwright.storage import write_file


class Explanation(Findings):
    """What was found about a network by letting it read a text; a notebook shows a summary of it."""

    def page(self) -> bytes:
        """The whole page as UTF-8 HTML, below 3 MB for 5,000 characters, which needs no network access."""
        return page_bytes(self)

    def picture(self, *, dpi: int = 150) -> bytes:
        """The main findings as a PNG.

        Raises:
            MissingExtraError: when matplotlib is not installed.
        """
        from charwright.explanation.picture import png_bytes

        return png_bytes(self, dpi=dpi)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file whose name ends with .html, or the picture to one that ends with .png.

        Raises:
            UsageError: when the name ends otherwise.
            RunError: when the system refuses.
            MissingExtraError: when matplotlib is needed and not installed.
        """
        place = Path(path)
        if place.suffix.lower() not in (".html", ".htm", ".png"):
            raise UsageError(f"{place} does not end with .html or .png")
        write_file(place, self.picture() if place.suffix.lower() == ".png" else self.page())

    def __str__(self) -> str:
        """The main findings in a few lines."""
        return summary_text(self)

    def __repr__(self) -> str:
        return f"<Explanation of {self.name}: {self.surprise.bits_per_char:.3f} bits per character, {self.source}>"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        """What IPython prints, and keeps in a notebook beside the HTML."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        return summary_html(self)
