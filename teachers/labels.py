"""Names of classes, and when two of them are the same name."""

import re
import unicodedata


def normalise(name: str) -> str:
    """Return the form in which names of classes are compared.

    Two names are the same if they differ only by case, by the Unicode form of their characters (NFC, NFD,
    full width), or by blanks, underscores and hyphens between words and around the name.
    """
    # Case folding can undo the composed form, so that the form is taken again.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"[\s_-]+", " ", folded).strip()
