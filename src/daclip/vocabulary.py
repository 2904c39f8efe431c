"""The ten degradations in the paper's order, "clean", everyday aliases, and the words of a mixture."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from daclip.errors import UsageError

DEGRADATIONS: tuple[str, ...] = (
    "motion-blurry",
    "hazy",
    "jpeg-compressed",
    "low-light",
    "noisy",
    "raindrop",
    "rainy",
    "shadowed",
    "snowy",
    "uncompleted",
)
"""The ten class texts of DA-CLIP, in the paper's order (Table 1)."""

CLEAN = "clean"
"""The word for a photo with nothing wrong, known to our own models and not to the published ones."""

SHADOWED = "shadowed"
"""What is undone before the restorer sees the photo, see daclip.light."""

WILD_IR = "wild-ir"
"""The word for the random degradation of wild-IR, where a data set is made with it."""

ALIASES: dict[str, str] = {
    "blur": "motion-blurry",
    "haze": "hazy",
    "jpeg": "jpeg-compressed",
    "dark": "low-light",
    "noise": "noisy",
    "drops": "raindrop",
    "rain": "rainy",
    "shadow": "shadowed",
    "snow": "snowy",
    "inpaint": "uncompleted",
}
"""Everyday words people type, and the paper's word for each."""


def degradation(word: str, *, known: Sequence[str] = DEGRADATIONS) -> str:
    """The degradation a word stands for: one of `known`, or what an alias means.

    Raises UsageError that names the nearest known word.

    >>> degradation("rain")
    'rainy'
    """
    name = word.strip().lower().replace("_", "-")
    name = name if name in known else ALIASES.get(name, name)
    if name in known:
        return name
    aliases = [alias for alias, meant in ALIASES.items() if meant in known]
    near = get_close_matches(name, [*known, *aliases], n=1, cutoff=0.5)
    meant = f'did you mean "{ALIASES.get(near[0], near[0])}"? ' if near else ""
    raise UsageError(f'unknown degradation "{word}"', hint=f"{meant}known: {', '.join(known)}")


def degradations(words: str, *, known: Sequence[str] = DEGRADATIONS) -> tuple[str, ...]:
    """The degradations of a comma list, doubles dropped, order kept.

    >>> degradations("rainy, noise")
    ('rainy', 'noisy')
    """
    names = [degradation(word, known=known) for word in words.split(",") if word.strip()]
    if not names:
        raise UsageError("no degradation named", hint=f"known: {', '.join(known)}")
    return tuple(dict.fromkeys(names))


def mixture_text(names: Iterable[str]) -> str:
    """The text of a mixture: its parts, in the paper's order, joined by commas; "clean" for no part.

    >>> mixture_text(["noisy", "hazy"])
    'hazy, noisy'
    """
    given = list(names)
    ordered = [name for name in DEGRADATIONS if name in given]
    ordered += [name for name in given if name not in DEGRADATIONS]
    return ", ".join(ordered) or CLEAN
