"""Rasterise the emoji sprites once: `python tools/render_sprites.py NODE_MODULES` (needs `pip install resvg-py`).

NODE_MODULES is where `npm install @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6
@iconify-json/twemoji@1.2.5` put the packages. Writes extras/uvr_zoo/data/sprites.png: one row per drawing
style, one 64x64 RGBA cell per object, in the order of uvr_zoo.vocabulary.OBJECTS. Licences: see NOTICE.
"""

import io
import json
import sys
from pathlib import Path

import resvg_py
from PIL import Image

from uvr_zoo.vocabulary import ICONS, OBJECTS, STYLES

CELL = 64
MARGIN = 2


def render(icon_set: dict, name: str) -> Image.Image:
    name = icon_set.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icon_set["icons"][name]
    width, height = icon.get("width", icon_set.get("width", 16)), icon.get("height", icon_set.get("height", 16))
    body = icon["body"].replace("currentColor", "#000")
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" width="256" height="256">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=256, height=256)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    inner = CELL - 2 * MARGIN
    scale = inner / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Premultiplied resampling, so that transparent pixels do not bleed into the edges.
    image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(image, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return cell


def main() -> None:
    root = Path(sys.argv[1]) / "@iconify-json"
    atlas = Image.new("RGBA", (CELL * len(OBJECTS), CELL * len(STYLES)))
    for row, (style, package) in enumerate(STYLES.items()):
        icon_set = json.loads((root / package / "icons.json").read_text())
        for column, name in enumerate(OBJECTS):
            atlas.paste(render(icon_set, ICONS[name]), (column * CELL, row * CELL))
        print(style, "done")
    atlas.save(Path(__file__).parents[1] / "extras/uvr_zoo/data/sprites.png", optimize=True)


if __name__ == "__main__":
    main()
