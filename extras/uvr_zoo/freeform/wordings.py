"""How free-form captions call things: synonyms, descriptions, backgrounds, styles. Data, and the split of wordings.

Of an object's synonyms, and of its descriptions, the quarter (at least one) with the smallest SHA-256 is held out: in
no
training caption and no anchor's prompt, so that what a model makes of them is what it understood. Whoever adds a
wording
may move another one to the other split, so the text encoders must then be trained anew.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Literal

from ..vocabulary import OBJECTS

Split = Literal["train", "heldout"]
Kind = Literal["name", "synonym", "description"]

_SYNONYMS = """
knife: blade, dagger, kitchen knife, machete, cleaver, chef's knife, carving knife, switchblade, steel blade, sharp
  knife, bread knife, combat knife, stiletto, bowie knife, butcher knife
pistol: gun, handgun, revolver, firearm, sidearm, water pistol, six-shooter, shooter, toy gun, squirt gun, weapon
  that fires, automatic pistol, ray gun
bomb: grenade, explosive, dynamite, hand grenade, time bomb, round bomb, fused bomb, explosive device, cartoon bomb,
  mine, warhead, detonator
skull: cranium, death's head, human skull, skeleton head, bare skull, bony head, skeleton, white skull, bare bones
cigarette: smoke, cig, burning cigarette, lit cigarette, tobacco, smoking cigarette, filter cigarette, cigar
syringe: needle, hypodermic, injection, hypodermic needle, medical syringe, vaccine needle, injector, jab,
  hypodermic syringe
alien: invader, space invader, extraterrestrial, martian, alien monster, pixel monster, space monster, purple alien,
  arcade alien
cat: kitten, kitty, pussycat, tomcat, house cat, feline, tabby, small cat, pet cat
dog: puppy, hound, doggy, pup, canine, terrier, house dog, pet dog, mutt, beagle, spaniel
apple: red apple, ripe apple, orchard apple, eating apple, crisp apple, pippin, fresh apple
car: automobile, vehicle, motorcar, sedan, auto, passenger car, red car, hatchback, motor vehicle, cab
tree: pine, fir, evergreen, conifer, spruce, pine tree, fir tree, green tree, christmas tree, evergreen tree
house: cottage, home, bungalow, dwelling, small house, country house, villa, family home, cabin, residence
star: yellow star, golden star, five-pointed star, shining star, gold star, pentagram, asterisk star, bright star
tulip: pink tulip, flower, blossom, spring tulip, garden tulip, bloom, pink flower
fish: trout, tropical fish, goldfish, angelfish, striped fish, reef fish, aquarium fish, perch, little fish
mushroom: toadstool, fungus, red mushroom, spotted mushroom, fly agaric, forest mushroom, champignon
guitar: electric guitar, string instrument, rock guitar, red guitar, six-string, acoustic guitar, bass guitar
ball: football, soccer ball, kickball, round ball, leather ball, game ball, sports ball
hat: top hat, black hat, cylinder hat, magician's hat, headgear, stovepipe hat, silk hat, tall hat, headwear
banana: yellow banana, ripe banana, peeled banana, plantain, tropical banana, sweet banana, half-peeled banana
butterfly: moth, winged insect, blue butterfly, monarch, swallowtail, colourful butterfly, summer butterfly
umbrella: parasol, brolly, rain umbrella, sunshade, open umbrella, purple umbrella, gamp
cactus: desert cactus, saguaro, succulent, spiny cactus, green cactus, prickly pear, thorny plant
rocket: spaceship, spacecraft, space rocket, rocket ship, missile, space shuttle, moon rocket
"""

_DESCRIPTIONS = """
knife: something to cut bread with; a sharp thing used to cut bread; a tool for slicing meat; a sharp blade with a
  handle; what a cook chops vegetables with; a thing for cutting; an instrument for stabbing; a pointed cutting tool
pistol: something to shoot with; a weapon that shoots bullets; what a robber points at people; a thing that fires
  when its trigger is pulled; a small weapon held in one hand; what a cowboy carries in his holster; a thing with a
  trigger and a barrel
bomb: something that explodes; a round thing with a burning fuse; what blows up a bridge; a black ball that goes off
  with a bang; an explosive that is thrown; a device that destroys when it goes off; a thing that detonates
skull: what is left of a head; the bones of a dead man's head; a head without skin or flesh; the bone that holds the
  brain; what a pirate flag shows; a bony face with empty eyes; what poison labels warn with
cigarette: something that burns between lips; a thing that people smoke; a roll of tobacco wrapped in paper; what a
  smoker lights; a burning stick that makes smoke; what is bad for the lungs of those who light it
syringe: something a nurse injects with; a tube with a needle for injections; what a doctor gives vaccines with; a
  medical instrument that pricks the skin; what draws blood from an arm; a thing used to inject drugs
alien: a creature from outer space; a monster of an old video game; a being from another planet; the enemy in an
  arcade game; a visitor from mars; a strange creature that came in a flying saucer
cat: an animal that purrs; a pet that catches mice; an animal that says meow; a furry pet with whiskers; what chases
  mice at night; a small animal that climbs curtains
dog: an animal that barks; man's best friend; a pet that fetches sticks; an animal that guards the house; what
  chases cats and wags its tail; a pet that is walked on a leash
apple: a fruit that falls from a tree; a round red fruit; what keeps the doctor away; the fruit that eve ate; a
  crunchy fruit with a stalk; the fruit that cider is made from
car: something to drive on a road; a machine with four wheels; what people drive to work; a thing that is parked in
  a garage; a vehicle with an engine and seats; what burns petrol on the motorway
tree: a tall plant with needles; something that grows in a forest; a plant with a trunk and branches; what wood
  comes from; what people decorate in december; a green plant that birds nest in
house: a building to live in; a place where a family lives; something with a roof and a door; a building with walls
  and windows; what a builder builds for people; a place to come home to
star: a bright shape with five points; what shines in the night; a thing to wish upon; a yellow shape with points;
  the award for good work; what twinkles high above
tulip: a flower from holland; a pink spring flower; a plant that grows from a bulb; what blooms in dutch fields; a
  flower shaped like a cup; a thing to give on mother's day
fish: an animal that swims in the sea; a creature with fins and scales; what lives in an aquarium; an animal that
  breathes under water; what anglers catch; a swimming animal with gills
mushroom: a fungus with a red cap; something with a cap and a stem that grows in the woods; a plant that may be
  poisonous; what gnomes live under; a spotted cap on a white stalk; what grows after rain among trees
guitar: an instrument with six strings; what a rock musician plays; a thing to strum; something to play a song on; a
  musical instrument with a neck; what a band needs on stage
ball: something to kick into a goal; a round thing for a game; what football players kick; a thing that bounces;
  what a goalkeeper catches; a round toy
hat: something to wear on a head; what a gentleman takes off to greet; a thing a magician pulls a rabbit from; a
  black cover for the head; what covers the hair; a tall thing worn on the head
banana: a long yellow fruit; a fruit that monkeys eat; a curved fruit with a peel; what one slips on; a fruit to
  peel; a yellow fruit that grows in bunches
butterfly: an insect with bright wings; what a caterpillar becomes; an insect that visits flowers; a flying insect
  with pretty wings; what flutters over a meadow
umbrella: something to keep the rain off; what one opens in the rain; a thing that keeps people dry; a folding cover
  on a stick; what protects from showers
cactus: a plant of the desert; a plant with spines; a green thing that pricks; what grows where there is no rain; a
  plant that stores water
rocket: something that flies to the moon; what astronauts travel in; a thing launched into space; a machine that
  lifts off with fire; a vehicle that leaves the earth
"""

# Background -> phrases that say so; {} is where "a cat" goes in none of them: they stand apart.
BACKGROUND_WORDS = {
    "night": ("at night", "in the dark", "night background", "by night", "under a night sky", "at midnight"),
    "snow": ("in the snow", "snow background", "in a snowy place", "on white snow", "in winter", "on a snowfield"),
    "sky": ("in the sky", "sky background", "against a blue sky", "up in the air", "among the clouds"),
    "grass": ("on the grass", "grass background", "on a lawn", "in a meadow", "in a green field", "on a pasture"),
    "sand": ("on the sand", "sand background", "in the desert", "on a beach", "on a sandy ground", "among dunes"),
    "dusk": ("at dusk", "dusk background", "at sunset", "in the evening", "at twilight", "in the last light"),
    "sea": ("in the sea", "sea background", "on the water", "in the ocean", "among the waves", "on a lake"),
    "city": ("in the city", "city background", "in front of buildings", "downtown", "among tall houses", "in town"),
    "confetti": ("among confetti", "confetti background", "at a party", "on a colourful pattern", "at a carnival"),
}  # fmt: skip

# Style -> phrases that say so.
STYLE_WORDS = {
    "glossy": ("glossy style", "in a glossy style", "shiny", "glossy drawing"),
    "flat": ("flat style", "in a flat style", "flat design", "flat drawing"),
    "toy": ("toy style", "in a toy style", "toy drawing", "like a toy"),
}

# What a caption may say of size -> the words.
SIZE_WORDS = {
    "small": ("tiny", "small", "little"),
    "": ("",),
    "large": ("large", "big", "huge"),
}


def _read(table: str, separator: str) -> dict[str, tuple[str, ...]]:
    """`name: wording, wording` lines, those that begin with a blank going on with the line before."""
    lines = table.replace("\n  ", " ").strip().split("\n")
    pairs = (line.split(":", 1) for line in lines)
    return {name: tuple(word.strip() for word in words.split(separator)) for name, words in pairs}


SYNONYMS = _read(_SYNONYMS, ",")
DESCRIPTIONS = _read(_DESCRIPTIONS, ";")


@functools.cache
def wordings(name: str, kind: Kind, split: Split) -> tuple[str, ...]:
    """How a split may call an object: held-out captions use held-out wordings alone.

    Raises:
        ValueError: no such object.
    """
    if name not in OBJECTS:
        raise ValueError(f"unknown object {name!r}; one of {', '.join(OBJECTS)}")
    if kind == "name":
        return (name,)
    table = (SYNONYMS if kind == "synonym" else DESCRIPTIONS)[name]
    ranked = sorted(table, key=lambda wording: hashlib.sha256(wording.encode()).digest())
    held = ranked[: max(1, len(table) // 4)]
    return tuple(wording for wording in table if (wording in held) == (split == "heldout"))


def vocabulary() -> dict[str, tuple[str, ...]]:
    """Everything that free-form pipelines may have learned to draw, with the wordings that this file has for it."""
    backgrounds = {f"background {name}": ways for name, ways in BACKGROUND_WORDS.items()}
    styles = {f"style {name}": ways for name, ways in STYLE_WORDS.items()}
    return {**SYNONYMS, **backgrounds, **styles}
