"""Pictures as addresses that hold them, for a page that is one file: small enough that the whole ladder's page stays below two megabytes."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup
from PIL import Image

from vitlab.figures.grids import PICTURES as IMAGE_PICTURES

WIDTH = 860  # pixels of a picture that shows test images; the page shows it no wider
COLORS = 64  # of a chart; the palette that leaves none of its colours far off
PIXELS = 2**24  # a picture may come from another machine: a larger one is not decoded
COLOR = re.compile(r"#[0-9a-f]{6}\b")  # in a chart's styles
UNSEEN = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<!--.*?-->", re.DOTALL)
GLYPH = re.compile(r'xlink:(href="#[^"]+") transform="translate\(([-\d.]+) 0\)"')
DECIMALS = re.compile(r"\b[1-9]\d*\.\d{3,}")  # of a coordinate; the factors of a scale are below 1
UNQUOTED = " !'()*,-./:;=@_~"  # what stands for itself in an address within double quotes, letters and digits aside


def picture(path: Path) -> str | None:
    """Return a run's PNG as an address that holds it smaller: a chart with fewer colours, test images as a thumbnail. None where it is damaged."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > PIXELS:
                return None
            drawn = image.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return None
    buffer = BytesIO()
    if path.name in IMAGE_PICTURES:
        drawn.thumbnail((WIDTH, PIXELS), Image.Resampling.LANCZOS)
        drawn.save(buffer, "WEBP", quality=30)
    else:
        few = drawn.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).convert("RGB")
        few.save(buffer, "WEBP", lossless=True, method=1)  # more effort saves a fiftieth more
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def chart(light: Path, dark: Path) -> Markup:
    """Return a chart as an address that holds it, drawn once: in the light colours, or in the dark ones where the reader prefers these."""
    drawn, other = (path.read_text(encoding="utf-8") for path in (light, dark))
    pairs = list(zip(COLOR.findall(drawn), COLOR.findall(other), strict=True))  # the two differ in nothing else
    names = {pair: f"--c{i}" for i, pair in enumerate(dict.fromkeys(pairs))}
    next_pair = iter(pairs)
    drawn = COLOR.sub(lambda _: f"var({names[next(next_pair)]})", drawn)
    in_light, in_dark = (";".join(f"{name}:{pair[i]}" for pair, name in names.items()) for i in (0, 1))
    style = f"<style>:root{{{in_light}}}@media(prefers-color-scheme:dark){{:root{{{in_dark}}}}}</style></svg>"
    drawn = shorter(drawn).replace("</svg>", style)
    return Markup(f"data:image/svg+xml,{quote(drawn, safe=UNQUOTED)}")  # base64 would be longer by a third


def shorter(svg: str) -> str:
    """Return a drawing of matplotlib's that looks the same in half the bytes: short names, coordinates to a hundredth of a point."""
    svg = GLYPH.sub(r'\1 x="\2"', UNSEEN.sub("", svg)).replace("xlink:href", "href")
    svg = DECIMALS.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), svg)
    short = {name: f"n{i}" for i, name in enumerate(dict.fromkeys(re.findall(r'(?:href="|url\()#([^")]+)', svg)))}
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{short[found[1]]}"' if found[1] in short else "", svg)
    svg = re.sub(r'((?:href="|url\()#)([^")]+)', lambda found: found[1] + short[found[2]], svg)
    return " ".join(svg.split()).replace("> <", "><").replace('"', "'")
