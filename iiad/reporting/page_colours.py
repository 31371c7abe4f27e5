"""Colours of a page, light and dark: text stands out from its ground by 4.5 : 1, marks by 3 : 1 (WCAG 2.2, AA).

The influence map's are cividis (Nuñez, Anderton, Renslow 2018), which colour-blind readers see alike; the series'
follow Okabe and Ito, darker on light ground and lighter on dark.
"""

from __future__ import annotations

__all__ = ["LEVELS", "NUM_LEVELS", "THEMES", "contrast"]

THEMES: dict[str, dict[str, str]] = {
    "light": {
        "ground": "#ffffff",
        "raised": "#f5f6f8",
        "ink": "#1a1d21",
        "muted": "#565d66",
        "line": "#d5d9de",
        "link": "#0a5a9c",
        "good": "#0b6b45",
        "bad": "#b3261e",
        "kept": "#0a5a9c",
        "on-kept": "#ffffff",
        "series-0": "#0072b2",
        "series-1": "#d55e00",
        "series-2": "#007f5f",
        "series-3": "#b1508f",
        "series-4": "#a86e00",
        "series-5": "#2f86b8",
        "series-6": "#3d444d",
    },
    "dark": {
        "ground": "#14171b",
        "raised": "#1e2329",
        "ink": "#e8eaed",
        "muted": "#a7aeb8",
        "line": "#3a424c",
        "link": "#7cc0f4",
        "good": "#5fcf9a",
        "bad": "#ff8a80",
        "kept": "#56b4e9",
        "on-kept": "#0c1116",
        "series-0": "#56b4e9",
        "series-1": "#ff8f3f",
        "series-2": "#3ecf9e",
        "series-3": "#e39ac4",
        "series-4": "#f0b429",
        "series-5": "#8fb8ff",
        "series-6": "#c9ced6",
    },
}
_CIVIDIS = "#00224e #1a386f #434e6c #61656f #7d7c78 #9b9476 #bcae6c #dec958 #fee838".split()
NUM_LEVELS = len(_CIVIDIS)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours #rrggbb, 1 to 21 (WCAG 2.2, relative luminance)."""
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


LEVELS = [(ground, max("#ffffff", "#000000", key=lambda ink: contrast(ink, ground))) for ground in _CIVIDIS]
"""Ground and ink of each level of the influence map, from the lowest."""
