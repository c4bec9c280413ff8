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
    drawn = " ".join(drawn.replace("</svg>", style).replace('"', "'").split())
    return Markup(f"data:image/svg+xml,{quote(drawn, safe=UNQUOTED)}")  # base64 would be longer by a third
