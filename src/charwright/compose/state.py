"""The state that the keys change and the screen shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from charwright.compose.manuscript import Manuscript
from charwright.compose.text_file import TextFile

Mode = Literal["writing", "generating", "naming", "replacing", "help"]


@dataclass
class State:
    """The manuscript, its file, and the mode of the editor.

    In "generating" the model writes until a key is pressed; "naming" and "replacing" ask for a file name and for
    permission to replace a file.
    """

    manuscript: Manuscript
    file: TextFile
    mode: Mode = "writing"
    note: str = ""  # A message that the next key press clears.
    unknown: list[str] = field(default_factory=list)  # Characters of the text that are not in the vocabulary.
    file_to_replace: Path = field(default_factory=Path)  # The file that the mode "replacing" asks about.
    obstacle: str = ""  # What that file is.
    help_offset: int = 0  # The first key on the current page of the help.
