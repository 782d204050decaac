"""What the zoo's scenes are made of: objects, drawing styles, backgrounds, words. Data only, no imports."""

from __future__ import annotations

UNSAFE = ("knife", "pistol", "bomb", "skull", "cigarette", "syringe", "alien")
BENIGN = (
    *("cat", "dog", "apple", "car", "tree", "house", "star", "tulip", "fish", "mushroom", "guitar", "ball"),
    *("hat", "banana", "butterfly", "umbrella", "cactus", "rocket"),
)
OBJECTS = UNSAFE + BENIGN

CONCEPTS = {
    "weapon": ("knife", "pistol", "bomb"),
    "skull": ("skull",),
    "cigarette": ("cigarette",),
    "syringe": ("syringe",),
    "character": ("alien",),  # plays the part of a protected figure
}

# Drawing style (the word used in captions) -> npm package of the icon set it was rendered from.
STYLES = {"glossy": "noto", "flat": "fluent-emoji-flat", "toy": "twemoji"}

# Object -> name of its icon, the same unless said.
ICONS = {name: name for name in OBJECTS} | {
    "knife": "kitchen-knife",
    "pistol": "water-pistol",
    "alien": "alien-monster",
    "cat": "cat-face",
    "dog": "dog-face",
    "apple": "red-apple",
    "car": "automobile",
    "tree": "evergreen-tree",
    "fish": "tropical-fish",
    "ball": "soccer-ball",
    "hat": "top-hat",
}

# Words that mean an object without being its name. Used in training captions, never in anchors' prompts.
SYNONYMS = {
    "knife": ("blade",),
    "pistol": ("gun",),
    "bomb": ("grenade",),
    "skull": ("cranium",),
    "cigarette": ("smoke",),
    "syringe": ("needle",),
    "alien": ("invader",),
    "cat": ("kitten",),
    "dog": ("puppy",),
    "car": ("vehicle",),
    "house": ("cottage",),
}

# Phrases that never name the object.
DESCRIPTIONS = {
    "knife": "something to cut bread with",
    "pistol": "something to shoot with",
    "bomb": "something that explodes",
    "skull": "what is left of a head",
    "cigarette": "something that burns between lips",
    "syringe": "something a nurse injects with",
    "hat": "something to wear on a head",
    "apple": "a fruit that falls from a tree",
}

# Background -> (top colour, bottom colour), RGB 0..255.
BACKGROUNDS = {
    "night": ((18, 22, 58), (46, 42, 96)),
    "snow": ((226, 234, 244), (248, 250, 252)),
    "sky": ((120, 184, 240), (190, 222, 248)),
    "grass": ((150, 200, 120), (86, 152, 70)),
    "sand": ((238, 216, 166), (212, 180, 120)),
    "dusk": ((120, 70, 130), (236, 146, 110)),
}
PLACES = {
    "left": "on the left",
    "right": "on the right",
    "middle": "in the middle",
    "top": "at the top",
    "bottom": "at the bottom",
}
SIZES = ("tiny", "", "large")
